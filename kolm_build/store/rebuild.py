"""Making the index again from the files.

Every object is hashed; what holds gets a row, in the order blobs, joined blobs, trees, so that
nothing is valid before what it names. Nobody else may use the store meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from blake3 import blake3

from kolm_build.core.closure import closure
from kolm_build.core.digest import Digest
from kolm_build.core.tree import Tree
from kolm_build.errors import CorruptObjectError, InvalidRecordError
from kolm_build.store import claims, pack, repack
from kolm_build.store.claims import StoredRealisation
from kolm_build.store.index import Index, Row
from kolm_build.store.join import Join
from kolm_build.store.layout import OBJECT_MODE, Form, Kind, Layout
from kolm_build.store.references import children
from kolm_build.store.restore import read_join, record_digest
from kolm_build.store.roots import Root
from kolm_build.store.survey import Found, survey
from kolm_build.store.verify import CONTEXT
from kolm_build.store.write import flush


def rebuild_index(layout: Layout) -> int:
    """Make the index again, and give the number of objects that hold.

    The memo and the stat cache start empty; they are only there to save time.
    """
    fresh = f"{layout.database}.new"
    for end in ("", "-wal", "-shm"):
        _unlink(fresh + end)
    index = Index(fresh, read_only=False)
    try:
        index.make()
        with index.transaction():
            count = _fill(layout, index)
    finally:
        index.close()
    for end in ("-wal", "-shm"):
        _unlink(layout.database + end)
    flush(fresh)
    os.rename(fresh, layout.database)
    flush(layout.root)
    return count


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _fill(layout: Layout, index: Index) -> int:
    index.add(_whole(layout, Kind.BLOB))
    _add_packs(layout, index)
    _add_joined(layout, index)
    _add_trees(layout, index)
    for kind in (Kind.DERIVATION, Kind.LOG, Kind.CLAIM):
        index.add(_whole(layout, kind))
    for row in index.rows(Kind.CLAIM):
        data = _read(layout.path(Kind.CLAIM, row.digest))
        claims.add(index, StoredRealisation.decode(data), row.digest)
    _add_roots(layout, index)
    return len(index.rows())


def _found(layout: Layout, kind: Kind, form: Form = Form.WHOLE) -> Iterator[Found]:
    for found in survey(layout, Kind.BLOB if kind is Kind.PACK else kind):
        if isinstance(found, Found) and found.kind is kind and found.form is form:
            yield found


def _whole(layout: Layout, kind: Kind) -> Iterator[Row]:
    """The objects of one kind whose bytes have the digest that their name says."""
    for found in _found(layout, kind):
        if _digest(found) == found.digest:
            os.chmod(found.path, OBJECT_MODE)
            yield Row(kind, found.digest, os.stat(found.path).st_size)


def _digest(found: Found) -> Digest:
    if found.kind in {Kind.BLOB, Kind.PACK}:
        return Digest(blake3(max_threads=blake3.AUTO).update_mmap(found.path).digest())
    return record_digest(_read(found.path), CONTEXT[found.kind])


def _add_packs(layout: Layout, index: Index) -> None:
    for row in _whole(layout, Kind.PACK):
        index.add([row])
        for one in pack.decode(_read(row.path(layout))):
            place = (Form.PACKED, row.digest, one.offset)
            index.add([Row(Kind.BLOB, one.b3, one.size_bytes, *place)])
    repack.remove_empty(index)


def _add_joined(layout: Layout, index: Index) -> None:
    """Joined blobs whose parts are all there; a part may be a joined blob itself."""
    joins = {found.digest: found for found in _found(layout, Kind.BLOB, Form.JOINED)}
    records: dict[Digest, Join] = {}
    for digest, found in joins.items():
        with suppress(CorruptObjectError):
            records[digest] = read_join(_read(found.path), digest, found.path)
    for digest in closure(sorted(records), lambda one: _parts(records, one)):
        join = records.get(digest)
        if join and all(index.has(Kind.BLOB, part) for part, _ in join.parts):
            index.add([Row(Kind.BLOB, digest, join.size_bytes, Form.JOINED)])


def _parts(records: dict[Digest, Join], digest: Digest) -> list[Digest]:
    join = records.get(digest)
    return [part for part, _ in join.parts] if join else []


def _add_trees(layout: Layout, index: Index) -> None:
    trees = {row.digest: row for row in _whole(layout, Kind.TREE)}
    records = {one: Tree.decode(_read(layout.path(Kind.TREE, one))) for one in trees}
    for digest in closure(sorted(records), lambda one: _subtrees(records, one)):
        tree = records.get(digest)
        if tree and all(index.has(kind, child) for kind, child in children(tree)):
            index.add([trees[digest]])


def _subtrees(records: dict[Digest, Tree], digest: Digest) -> list[Digest]:
    tree = records.get(digest)
    return [child for kind, child in children(tree) if kind is Kind.TREE] if tree else []


def _add_roots(layout: Layout, index: Index) -> None:
    for name in sorted(os.listdir(layout.folder("roots"))):
        with suppress(InvalidRecordError, ValueError):
            root = Root.decode(_read(f"{layout.folder('roots')}/{name}"))
            index.execute(
                "insert or replace into root values (?, ?)", [(root.name, root.encode().decode())]
            )


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
