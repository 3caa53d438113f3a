"""Folders made from trees, to be used where they lie: environments that steps run in.

Such a folder is a copy and no object: it can be lost, and is made again. It is handed out only
while every file in it looks as it did when it was made (size, times, inode), so that editing it
in place changes nothing but the time until it is made anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from kolm_build.core import cbor
from kolm_build.core.digest import Digest, RecordKind
from kolm_build.errors import InvalidRecordError
from kolm_build.store.index import Index
from kolm_build.store.layout import Kind, Layout
from kolm_build.store.lockfile import held
from kolm_build.store.session import Session, remove_tree

FOLDER = "env"


def unpacked(
    layout: Layout,
    index: Index,
    session: Session,
    tree: Digest,
    make: Callable[[Path], None],
) -> str:
    """The folder of `tree`, made by `make` unless it is there and untouched."""
    place = f"{layout.folder(FOLDER)}/{tree.hex}"
    key = _key(tree)
    lock = f"{layout.folder('locks')}/{tree.hex}"
    with held(lock, holder=f"process {os.getpid()}", on_wait=lambda _: None):
        if _noted(index, key) == stamp_of(place):
            return place
        remove_tree(place)
        temp = session.temp()
        try:
            make(Path(temp))
            stamp = stamp_of(temp)
            os.rename(temp, place)
        except BaseException:
            remove_tree(temp)
            raise
        with index.transaction():
            index.execute("insert or replace into memo values (?, ?)", [(key.raw, stamp)])
    return place


def remove_dead(layout: Layout, index: Index) -> None:
    """Remove the folders whose trees are gone."""
    with os.scandir(layout.folder(FOLDER)) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        if not _is_tree(index, name):
            remove_tree(f"{layout.folder(FOLDER)}/{name}")


def stamp_of(folder: str) -> bytes:
    """A digest of the name, size, mode, times and inode of all below `folder`; empty without it."""
    if not os.path.isdir(folder):
        return b""
    blocks = []
    todo = [folder]
    while todo:
        place = todo.pop()
        lines = []
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                else:
                    lines.append(_line(entry))
        blocks.append("\n".join([place[len(folder) :] + "/", *sorted(lines)]))
    return blake3(os.fsencode("\n".join(sorted(blocks)))).digest()


def _line(entry: os.DirEntry[str]) -> str:
    facts = entry.stat(follow_symlinks=False)
    return f"{entry.name}\0{facts.st_size}\0{facts.st_mode}\0{facts.st_mtime_ns}\0{facts.st_ino}"


def _key(tree: Digest) -> Digest:
    return Digest.of_record(cbor.encode(["unpacked", tree.raw]), RecordKind.MEMO)


def _noted(index: Index, key: Digest) -> bytes | None:
    for (value,) in index.select("select value from memo where key = ?", (key.raw,)):
        return value  # type: ignore[return-value]  # the schema's types
    return None


def _is_tree(index: Index, name: str) -> bool:
    try:
        return index.has(Kind.TREE, Digest.parse(f"b3:{name}"))
    except InvalidRecordError:
        return False
