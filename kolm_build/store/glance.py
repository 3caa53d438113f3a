"""A look into a store's index without opening the store: for the build with nothing to do.

It answers three questions by raw digests and imports next to nothing, because it decides how long
the commonest command of all takes. Whatever it cannot answer is asked of the store itself.
"""

from __future__ import annotations

# The module beneath `sqlite3`, which adds adapters for dates and imports `datetime` for them.
from _sqlite3 import Error, connect
from collections.abc import Iterable

__all__ = ["Error", "Glance", "database_uri"]

_TREE = 1
"""`Kind.TREE`, without importing what describes objects; a test holds the two together."""


class Glance:
    """The index of the store at `root`, for reading.

    Raises:
        Error: There is none, or it cannot be read; so do the questions.
    """

    def __init__(self, root: str) -> None:
        self._db = connect(database_uri(f"{root}/db.sqlite") + "?mode=ro", uri=True)

    def close(self) -> None:
        """Let go of the index."""
        self._db.close()

    def memo(self, key: bytes) -> bytes | None:
        """What was remembered under `key`."""
        row = self._db.execute("select value from memo where key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def has_trees(self, digests: Iterable[bytes]) -> bool:
        """Whether every one of these trees is there, with all below it."""
        query = f"select 1 from object where kind = {_TREE} and digest = ?"
        return all(self._db.execute(query, (one,)).fetchone() for one in set(digests))

    def contents(self, resolved: bytes, output: str) -> set[bytes]:
        """The distinct contents claimed for one output."""
        query = "select distinct content from claim where resolved = ? and output = ?"
        return {bytes(raw) for (raw,) in self._db.execute(query, (resolved, output))}


def database_uri(path: str) -> str:
    """A path for SQLite; spelt here, since urllib takes longer to import than a look-up."""
    return "file:" + path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
