"""The build with nothing to do: told from notes, before anything slow is imported.

`engine.noop` notes results with the stamps of their local sources. Beside that note stands one of
ours: which sources those are, which files the build wrote, and what was told of the artifact.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING

from kolm_build import __version__
from kolm_build.core import cbor
from kolm_build.core.digest import Digest, RecordKind
from kolm_build.core.fields import Fields
from kolm_build.engine.noop import Noted, noop_key, recall, remember
from kolm_build.engine.probe import probe_platform
from kolm_build.errors import InvalidRecordError, KolmError
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.places import LOCK, OUTPUTS, RECIPE, default_key, find_root, store_root

if TYPE_CHECKING:
    from kolm_build.surfaces.results import Finished, Written

Stamp = list[object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A build that had nothing to do.

    Attributes:
        targets: Target name to content.
        artifact: What was told of the artifact when it was written; None where there is none.
    """

    targets: Mapping[str, str]
    artifact: Mapping[str, object] | None


def nothing_to_do(args: Namespace) -> Told | None:
    """What the last build of the same told, if it still holds; None where one must look.

    Whatever is wrong with the project or the store is left for the real build to say.
    """
    if args.check or args.dry_run or args.record:
        return None
    try:
        root = find_root(args.project)
        with LocalStore.open(store_root(args.store, root), read_only=True) as store:
            return _recalled(_key(args, root), store)
    except (KolmError, OSError):
        return None


def note(finished: Finished, written: Written | None, args: Namespace) -> None:
    """Note a build that went well, for `nothing_to_do`."""
    from kolm_build.surfaces.sources import local_path
    from kolm_build.surfaces.story import local_inputs

    root, store, realised = finished.prepared.project.root, finished.store, finished.realised
    key = _key(args, root)
    locked = local_inputs(finished.prepared.lock)
    sources = sorted({local_path(root, one.source) for one in locked})
    results = [
        Noted(
            name=name,
            key=realised.keys[output.derivation],
            output=output.output,
            content=realised.contents[output],
        )
        for name, output in finished.wanted.items()
        if output.derivation in realised.keys
    ]
    if len(results) < len(finished.wanted):
        return  # a target that is fixed by its digest alone has no claim to watch
    if not remember(store, key, results, sources=sources, now_ns=time_ns()):
        return  # a source is so fresh that its time would not show another change
    files = [*([written.path] if written else []), *_watched(args, root)]
    value = {
        "artifact": written.to_value() if written else {},
        "files": [[str(path), _stamp(path)] for path in files],
        "sources": [[str(source), []] for source in sources],
    }
    store.memo_put(_own_key(key), cbor.encode(value))


def _recalled(key: Digest, store: LocalStore) -> Told | None:
    data = store.memo_get(_own_key(key))
    if data is None:
        return None
    fields = Fields(cbor.decode(data))
    files = fields.records("files", _stamped)
    if not all(_stamp(path) == stamp for path, stamp in files):
        return None
    sources = [path for path, _ in fields.records("sources", _stamped)]
    results = recall(store, key, sources=sources)
    return None if results is None else _told(results, fields.table("artifact"))


def _stamped(value: object) -> tuple[Path, Stamp]:
    match value:
        case [str(path), list(stamp)]:
            return Path(path), stamp
        case _:
            raise InvalidRecordError("not a path and its stamp")


def _told(results: Iterable[Noted], artifact: Mapping[str, object]) -> Told:
    targets = {one.name: str(one.content) for one in results}
    return Told(targets=targets, artifact=artifact or None)


def _key(args: Namespace, root: Path) -> Digest:
    return noop_key(
        recipe=(root / RECIPE).read_bytes(),
        lock=(root / LOCK).read_bytes(),
        version=__version__,
        platform=str(probe_platform()),
        wanted=_wanted(args, root),
    )


def _wanted(args: Namespace, root: Path) -> Sequence[str]:
    """What was asked for: where things go and who signs are part of it."""
    output = "" if args.output is None else args.output.absolute()
    key = "" if args.no_sign else _key_file(args)
    return [str(root), *args.targets, "into", str(output), "signed by", str(key)]


def _watched(args: Namespace, root: Path) -> Sequence[Path]:
    """Files that are no input of any step, and whose change a build must notice."""
    return (root / OUTPUTS, _key_file(args))


def _key_file(args: Namespace) -> Path:
    given: Path = args.key or default_key()
    return given.absolute()


def _own_key(key: Digest) -> Digest:
    return Digest.of_record(cbor.encode(["nothing to do", key.raw]), RecordKind.MEMO)


def _stamp(path: Path) -> Stamp:
    try:
        facts = path.stat()
    except OSError:
        return [-1]
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
