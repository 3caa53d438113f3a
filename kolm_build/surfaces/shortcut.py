"""The build with nothing to do: told from notes, before anything slow is imported.

`engine.noop` notes results with the stamps of their local sources. Beside that note stands one of
ours: which sources those are, which files the build wrote, and what was told of the artifact.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from time import time_ns

from kolm_build import __version__
from kolm_build.core import cbor
from kolm_build.engine.cpu import cpu_kind
from kolm_build.engine.noop import Noted, memo_key, noop_key, recall, remember
from kolm_build.errors import InvalidRecordError, KolmError
from kolm_build.store.glance import Error, Glance
from kolm_build.surfaces.places import (
    RECIPE,
    absolute,
    default_key,
    find_root,
    lock_file,
    outputs_file,
    store_root,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from kolm_build.surfaces.results import Finished, Written

VERSION = 2

Stamp = list[object]


class Told:
    """A build that had nothing to do.

    Attributes:
        targets: Target name to content.
        artifact: What was told of the artifact when it was written; None where there is none.
    """

    __slots__ = ("artifact", "targets")

    def __init__(
        self, *, targets: Mapping[str, str], artifact: Mapping[str, object] | None
    ) -> None:
        self.targets = targets
        self.artifact = artifact


def nothing_to_do(args: Namespace) -> Told | None:
    """What the last build of the same told, if it still holds; None where one must look.

    Whatever is wrong with the project or the store is left for the real build to say.
    """
    if args.check or args.dry_run or args.record or args.target:
        return None
    try:
        root = find_root(args.project)
        store = Glance(store_root(args.store, root))
        try:
            return _recalled(_key(args, root), store)
        finally:
            store.close()
    except (KolmError, OSError, Error):
        return None


def note(finished: Finished, written: Written | None, args: Namespace) -> None:
    """Note a build that went well, for `nothing_to_do`."""
    from contextlib import suppress

    from kolm_build.core.digest import Digest
    from kolm_build.surfaces.sources import local_path
    from kolm_build.surfaces.story import local_inputs

    root, store, realised = finished.prepared.project.root, finished.store, finished.realised
    key = _key(args, str(root))
    locked = local_inputs(finished.prepared.lock)
    sources = sorted({str(local_path(root, one.source)) for one in locked})
    results = [
        Noted(
            name=name,
            key=realised.keys[output.derivation].raw,
            output=output.output,
            content=realised.contents[output].raw,
        )
        for name, output in finished.wanted.items()
        if output.derivation in realised.keys
    ]
    if len(results) < len(finished.wanted):
        return  # a target that is fixed by its digest alone has no claim to watch
    if not remember(store, key, results, sources=sources, now_ns=time_ns()):
        return  # a source is so fresh that its time would not show another change
    made = [str(written.path)] if written else []
    files = [*made, *_watched(args, str(root))]
    value = {
        "artifact": written.to_value() if written else {},
        "files": [_stamp(os.fsencode(path)) for path in files],
        "sources": [os.fsencode(source) for source in sources],
    }
    with suppress(InvalidRecordError):  # a path that is no text: the next build looks again
        store.memo_put(Digest(_own_key(key)), cbor.encode(value))


def _recalled(key: bytes, store: Glance) -> Told | None:
    data = store.memo(_own_key(key))
    if data is None:
        return None
    noted: Any = cbor.decode(data)  # the version of its form is in its key
    if [_stamp(path) for path, *_ in noted["files"]] != noted["files"]:
        return None
    results = recall(store, key, sources=[os.fsdecode(source) for source in noted["sources"]])
    if results is None:
        return None
    targets = {one.name: f"b3:{one.content.hex()}" for one in results}
    return Told(targets=targets, artifact=noted["artifact"] or None)


def _key(args: Namespace, root: str) -> bytes:
    return noop_key(
        recipe=_bytes_of(f"{root}/{RECIPE}"),
        lock=_bytes_of(lock_file(args.lock, root)),
        version=__version__,
        platform="/".join(cpu_kind()),
        wanted=_wanted(args, root),
    )


def _bytes_of(path: str) -> bytes:
    with open(path, "rb") as file:  # spares pathlib
        return file.read()


def _wanted(args: Namespace, root: str) -> Sequence[str | bytes]:
    """What was asked for: where things go and who signs are part of it."""
    output = "" if args.output is None else absolute(args.output)
    key = "" if args.no_sign else _key_file(args)
    return [
        *(os.fsencode(root), os.fsencode(lock_file(args.lock, root)), *args.targets),
        *("into", os.fsencode(output), "signed by", os.fsencode(key)),
    ]


def _watched(args: Namespace, root: str) -> Sequence[str]:
    """Files that are no input of any step, and whose change a build must notice."""
    return (outputs_file(lock_file(args.lock, root)), _key_file(args))


def _key_file(args: Namespace) -> str:
    return absolute(default_key() if args.key is None else args.key)


def _own_key(key: bytes) -> bytes:
    return memo_key("nothing to do", VERSION, key)


def _stamp(path: bytes) -> Stamp:
    try:
        facts = os.stat(path)  # of paths that were noted as bytes
    except OSError:
        return [path, -1]
    return [path, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
