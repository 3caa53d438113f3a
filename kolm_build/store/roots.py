"""Roots: what the collector must keep, by name.

A root names trees and derivations. It may end with a day, and it may belong to a file outside
the store (a lockfile, a link to an output): when that file is gone, so is the root. Each is a
small file in `roots/`, so that the index can be made again, and a row in the index, so that
adding one and collecting are transactions of one database.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Self

from kolm_build.core.digest import Digest
from kolm_build.core.fields import Fields
from kolm_build.core.name import parse_label
from kolm_build.errors import InvalidRecordError
from kolm_build.store.index import Index
from kolm_build.store.layout import Layout
from kolm_build.store.session import Session
from kolm_build.store.write import flush, write_named

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """One root.

    Attributes:
        name: Its name, unique in the store.
        trees: The trees that it keeps, with all below them.
        derivations: The derivations whose outputs and inputs it keeps.
        expires: The last day on which it holds; None for no end.
        path: The file that it belongs to; None for a root of its own.
    """

    name: str
    trees: tuple[Digest, ...] = ()
    derivations: tuple[Digest, ...] = ()
    expires: date | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        parse_label(self.name)

    def holds(self, today: date | None) -> bool:
        """Whether it still keeps anything; without a day, none is over."""
        if today is not None and self.expires is not None and self.expires < today:
            return False
        return self.path is None or os.path.lexists(self.path)

    def encode(self) -> bytes:
        """The root as one line of JSON."""
        from kolm_build.core import strict_json

        return strict_json.dumps(
            {
                "v": VERSION,
                "name": self.name,
                "trees": [str(tree) for tree in self.trees],
                "derivations": [str(derivation) for derivation in self.derivations],
                "expires": self.expires.isoformat() if self.expires else None,
                "path": self.path,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The inverse of `encode`, strict."""
        from kolm_build.core import strict_json

        fields = Fields(strict_json.loads(data))
        fields.version(VERSION)
        expires = fields.nullable("expires", str)
        made = cls(
            name=fields.text("name"),
            trees=fields.records("trees", _digest),
            derivations=fields.records("derivations", _digest),
            expires=date.fromisoformat(expires) if expires else None,
            path=fields.nullable("path", str),
        )
        fields.done()
        return made


def _digest(value: object) -> Digest:
    if type(value) is not str:
        raise InvalidRecordError("a digest is text", actual=repr(value)[:80])
    return Digest.parse(value)


def add(layout: Layout, index: Index, session: Session, root: Root) -> None:
    """Add a root, or change the one of that name."""
    with index.transaction():
        write(layout, index, session, root)


def write(layout: Layout, index: Index, session: Session, root: Root) -> None:
    """Add a root inside a transaction that is open already."""
    data = root.encode()
    write_named(_path(layout, root.name), data, session.temp())
    index.execute("insert or replace into root values (?, ?)", [(root.name, data.decode())])


def listed(index: Index) -> tuple[Root, ...]:
    """Every root, by name."""
    rows = index.select("select record from root order by name")
    return tuple(Root.decode(str(record).encode()) for (record,) in rows)


def remove(layout: Layout, index: Index, names: Iterable[str]) -> None:
    """Remove roots; inside the index's transaction. Those that are not there are no error.

    The file goes first: should the row survive it, something is kept too long and nothing lost.
    """
    for name in names:
        try:
            os.unlink(_path(layout, parse_label(name)))
        except FileNotFoundError:
            continue
        flush(layout.folder("roots"))
    index.execute("delete from root where name = ?", [(name,) for name in names])


def _path(layout: Layout, name: str) -> str:
    return f"{layout.folder('roots')}/{name}"
