"""What files really lie in a store's folders, whatever the index says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from kolm_build.core.digest import Digest
from kolm_build.store.layout import BESIDE, Form, Kind, Layout

_NAME = re.compile(r"[0-9a-f]{64}")
_FAN = re.compile(r"[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Found:
    """A file under an object's name; nobody has looked at its bytes.

    Attributes:
        kind: What it would be.
        digest: What its name says.
        form: How a blob would lie there.
        path: Where it lies.
    """

    kind: Kind
    digest: Digest
    form: Form
    path: str


def survey(layout: Layout, kind: Kind) -> Iterator[Found | str]:
    """Every file in the folder of one kind; a foreign one as its path. Packs lie among blobs."""
    folder = layout.folder(kind.folder)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and layout.is_fanned(kind):
                yield from _fan(layout, kind, entry)
            else:
                yield _found(layout, kind, entry)


def _fan(layout: Layout, kind: Kind, fan: os.DirEntry[str]) -> Iterator[Found | str]:
    if not _FAN.fullmatch(fan.name):
        yield fan.path
        return
    with os.scandir(fan.path) as entries:
        for entry in entries:
            yield _found(layout, kind, entry)


def _found(layout: Layout, kind: Kind, entry: os.DirEntry[str]) -> Found | str:
    name, dot, ending = entry.name.partition(".")
    if not _NAME.fullmatch(name) or not entry.is_file(follow_symlinks=False):
        return entry.path
    kind = Kind.PACK if kind is Kind.BLOB and ending == "pack" else kind
    form = Form.JOINED if kind is Kind.BLOB and dot else Form.WHOLE
    digest = Digest(bytes.fromhex(name))
    if layout.path(kind, digest, form) != entry.path:
        return entry.path
    return Found(kind, digest, form, entry.path)


def strangers(layout: Layout) -> Iterator[str]:
    """What lies at the top of a store and does not belong there."""
    for name in sorted(os.listdir(layout.root)):
        if name not in BESIDE and not name.startswith("db.sqlite"):
            yield f"{layout.root}/{name}"
