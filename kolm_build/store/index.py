"""The index: which objects are valid, in one SQLite file (spec/store.md).

A row says that the object's bytes are durable under their name. Rows are written after the bytes
and removed before them, in transactions that also hold every pin and root, so one database
orders builders and the garbage collector. Everything here but the memo, the stat cache and the
pins can be made again from the files.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from threading import RLock
from typing import NamedTuple, TypeVar

from kolm_build.core.digest import Digest
from kolm_build.store.glance import database_uri
from kolm_build.store.layout import Form, Kind, Layout

WAIT_S = 600.0
"""How long a writer waits for another; a transaction is as long as one flush of the disk."""

_SCHEMA = """
create table if not exists object (
  kind integer not null, digest blob not null, size integer not null, form integer not null,
  pack blob, offset integer not null, primary key (kind, digest)) without rowid;
create table if not exists claim (
  resolved blob not null, output text not null, digest blob not null,
  content blob not null, derivation blob not null,
  primary key (resolved, output, digest)) without rowid;
create index if not exists claim_derivation on claim (derivation);
create table if not exists root (
  name text primary key, record text not null) without rowid;
create table if not exists session (name text primary key) without rowid;
create table if not exists pin (
  session text not null, digest blob not null, primary key (session, digest)) without rowid;
create table if not exists memo (key blob primary key, value blob not null) without rowid;
create table if not exists stat (
  dev integer not null, ino integer not null, size integer not null,
  mtime_ns integer not null, ctime_ns integer not null, b3 blob not null, sha256 blob not null,
  primary key (dev, ino)) without rowid;
"""
T = TypeVar("T")

_KINDS = {int(kind): kind for kind in Kind}
_FORMS = {int(form): form for form in Form}
_SELECT_ROWS = "select kind, digest, size, form, pack, offset from object"
_MAX_VARIABLES = 10_000
VERSION = 2
"""Of the tables. An index of another version is made again from the files."""


class Row(NamedTuple):
    """One object in the index. A named tuple: ten thousand are made for one large tree.

    Attributes:
        kind: What it is.
        digest: Its name.
        size_bytes: The size of its bytes, those of its parts together for a joined blob.
        form: How a blob lies in the store.
        pack: The pack that a packed blob is in.
        offset: Where it begins there.
    """

    kind: Kind
    digest: Digest
    size_bytes: int
    form: Form = Form.WHOLE
    pack: Digest | None = None
    offset: int = 0

    def path(self, layout: Layout) -> str:
        """The file that holds its bytes, or the record of its parts."""
        if self.pack is not None:
            return layout.path(Kind.PACK, self.pack)
        return layout.path(self.kind, self.digest, self.form)


class Index:
    """One connection to the index of a store; threads may share it.

    Args:
        path: The database file.
        read_only: Never write.
    """

    def __init__(self, path: str, *, read_only: bool) -> None:
        self._lock = RLock()
        self._db = _connected(path, read_only=read_only)

    def make(self) -> None:
        """Make the tables that are not there yet."""
        if self._db.execute("select count(*) from sqlite_master").fetchone()[0] == 0:
            self._db.executescript(
                f"begin immediate; {_SCHEMA} pragma user_version = {VERSION}; commit;"
            )

    def is_current(self) -> bool:
        """Whether the tables are of this program's version."""
        return self.select("pragma user_version") == [(VERSION,)]

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """The one writer of this store; all or nothing, durable when it ends."""
        with self._lock:
            self._db.execute("begin immediate")
            try:
                yield
            except BaseException:
                self._db.execute("rollback")
                raise
            self._db.execute("commit")

    def select(self, query: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
        """All rows of one query."""
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def execute(self, query: str, values: Iterable[Sequence[object]] = ((),)) -> None:
        """One statement for each of `values`; inside `transaction`."""
        self._db.executemany(query, values)

    # Objects

    def has(self, kind: Kind, digest: Digest) -> bool:
        """Whether the object is valid."""
        query = "select 1 from object where kind = ? and digest = ?"
        return bool(self.select(query, (int(kind), digest.raw)))

    def row(self, kind: Kind, digest: Digest) -> Row | None:
        """The object's row, or None."""
        query = f"{_SELECT_ROWS} where kind = ? and digest = ?"
        for values in self.select(query, (int(kind), digest.raw)):
            return _row(values)
        return None

    def rows_of(self, kind: Kind, digests: Iterable[Digest]) -> dict[Digest, Row]:
        """The rows of those of `digests` that are valid objects of `kind`."""
        found: list[Row] = []
        for some in chunks([one.raw for one in digests]):
            query = f"{_SELECT_ROWS} where kind = {int(kind)} and digest in ({marks(some)})"
            found.extend(map(_row, self.select(query, some)))
        return {row.digest: row for row in found}

    def present(
        self, kind: Kind, digests: Iterable[Digest], *, form: Form | None = None
    ) -> set[Digest]:
        """Those of `digests` that are valid objects of `kind`, and lie in the store as `form`."""
        given = {one.raw: one for one in digests}
        found: set[Digest] = set()
        where = f"kind = {int(kind)}" + ("" if form is None else f" and form = {int(form)}")
        for some in chunks(list(given)):
            query = f"select digest from object where {where} and digest in ({marks(some)})"
            found.update(given[raw] for (raw,) in self.select(query, some))  # type: ignore[index]  # the schema's types
        return found

    def rows(self, kind: Kind | None = None) -> list[Row]:
        """Every object, or every one of `kind`, sorted."""
        where = "" if kind is None else f" where kind = {int(kind)}"
        return [_row(values) for values in self.select(f"{_SELECT_ROWS}{where} order by 1, 2")]

    def files(self) -> list[Row]:
        """Every object that has a file of its own, sorted."""
        return [_row(values) for values in self.select(f"{_SELECT_ROWS} where pack is null")]

    def adrift(self) -> list[Row]:
        """The blobs whose pack is no valid object."""
        packs = f"select digest from object where kind = {int(Kind.PACK)}"
        query = f"{_SELECT_ROWS} where pack is not null and pack not in ({packs})"
        return [_row(values) for values in self.select(query)]

    def names(self, kind: Kind) -> set[object]:
        """The raw digest of every object of `kind`."""
        query = f"select digest from object where kind = {int(kind)}"
        return {raw for (raw,) in self.select(query)}

    def count(self) -> int:
        """How many objects there are."""
        return int(str(self.select("select count(*) from object")[0][0]))

    def packed_in(self, pack: Digest) -> list[Row]:
        """The blobs in a pack, in its order."""
        query = f"{_SELECT_ROWS} where pack = ? order by offset, digest"
        return [_row(values) for values in self.select(query, (pack.raw,))]

    def add(self, rows: Iterable[Row]) -> None:
        """Make objects valid; inside `transaction`, after their bytes are durable."""
        self.execute("insert or ignore into object values (?, ?, ?, ?, ?, ?)", map(_values, rows))

    def remove(self, kind: Kind, digests: Iterable[Digest]) -> None:
        """Make objects invalid; inside `transaction`, before their bytes go."""
        self.execute(
            f"delete from object where kind = {int(kind)} and digest = ?",
            ((digest.raw,) for digest in digests),
        )

    # Pins

    def pin(self, session: str, digests: Iterable[Digest]) -> None:
        """Keep objects as long as the session lives; inside `transaction`."""
        self.execute(
            "insert or ignore into pin values (?, ?)", ((session, one.raw) for one in digests)
        )

    def pinned(self) -> set[Digest]:
        """Everything that a session pins."""
        rows = self.select("select distinct digest from pin")
        return {Digest(raw) for (raw,) in rows}  # type: ignore[arg-type]  # see schema


@lru_cache(maxsize=1024)
def _pack(raw: bytes) -> Digest:
    """A pack's digest; thousands of rows name the same one."""
    return Digest(raw)


def _row(values: tuple[object, ...]) -> Row:
    kind, raw, size, form, pack, offset = values
    return Row(
        _KINDS[kind],  # type: ignore[index]  # the schema's types, here and below
        Digest(raw),  # type: ignore[arg-type]
        size,  # type: ignore[arg-type]
        _FORMS[form],  # type: ignore[index]
        None if pack is None else _pack(pack),
        offset,  # type: ignore[arg-type]
    )


def _values(row: Row) -> tuple[object, ...]:
    pack = None if row.pack is None else row.pack.raw
    return (int(row.kind), row.digest.raw, row.size_bytes, int(row.form), pack, row.offset)


def _connected(path: str, *, read_only: bool) -> sqlite3.Connection:
    if not read_only:
        return _opened(database_uri(path), "pragma journal_mode=wal", "pragma synchronous=full")
    try:
        return _opened(database_uri(path) + "?mode=ro", "select 1 from object limit 0")
    except sqlite3.OperationalError:
        return _snapshot(path)


def _opened(uri: str, *first: str) -> sqlite3.Connection:
    db = sqlite3.connect(
        uri, uri=True, timeout=WAIT_S, isolation_level=None, check_same_thread=False
    )
    try:
        for statement in first:
            db.execute(statement)
    except BaseException:
        db.close()
        raise
    return db


def _snapshot(path: str) -> sqlite3.Connection:
    """The index in memory, from where SQLite may not put its shared memory beside the file."""
    from shutil import copyfile
    from tempfile import TemporaryDirectory

    memory = _opened("file::memory:")
    with TemporaryDirectory() as folder:
        copy = f"{folder}/db"
        for end in ("", "-wal"):
            if not end or os.path.exists(path + end):
                copyfile(path + end, copy + end)
        with closing(_opened(database_uri(copy))) as source:
            source.backup(memory)
    return memory


def chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """`items` in runs that one query can name."""
    for start in range(0, len(items), _MAX_VARIABLES):
        yield items[start : start + _MAX_VARIABLES]


def marks(items: Sequence[object]) -> str:
    """A question mark for each of `items`."""
    return ",".join("?" * len(items))
