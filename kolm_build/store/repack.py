"""Packs that are mostly dead bytes: what lives in them moves to a new pack."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import accumulate

from kolm_build.core.digest import Digest
from kolm_build.errors import CorruptObjectError, MissingObjectError
from kolm_build.store import pack
from kolm_build.store.index import Index, Row
from kolm_build.store.layout import Kind, Layout
from kolm_build.store.restore import Reader
from kolm_build.store.session import Session
from kolm_build.store.write import flush, write_file


def remove_empty(index: Index) -> None:
    """Take away the rows of packs that hold no blob any more; inside a transaction."""
    index.execute(
        f"delete from object where kind = {int(Kind.PACK)} and digest not in "
        "(select pack from object where pack is not null)"
    )


def repack(layout: Layout, index: Index, reader: Reader, session: Session) -> None:
    """Write anew what lives in packs that are less than half alive.

    A damaged pack is left for the check to find.
    """
    living = index.select(
        f"select pack, sum(size + {pack.ENTRY_BYTES}) from object "
        "where pack is not null group by pack"
    )
    alive: dict[object, int] = dict(living)  # type: ignore[arg-type]  # the schema's types
    for old in index.rows(Kind.PACK):
        if 2 * alive.get(old.digest.raw, 0) < old.size_bytes:
            with suppress(CorruptObjectError, MissingObjectError):
                _move(layout, index, reader, session, old.digest)


def _move(layout: Layout, index: Index, reader: Reader, session: Session, old: Digest) -> None:
    rows = index.packed_in(old)
    data = pack.encode([(row.digest, reader.blob(row.digest)) for row in rows])
    places = accumulate((row.size_bytes for row in rows), initial=0)
    new = Row(Kind.PACK, Digest.of_blob(data), len(data))
    temp = session.temp()
    write_file(temp, data)
    flush(temp)
    with index.transaction():
        os.rename(temp, new.path(layout))
        flush(os.path.dirname(new.path(layout)))
        index.add([new])
        index.execute(
            "update object set pack = ?, offset = ? where digest = ? and pack = ?",
            [
                (new.digest.raw, at, row.digest.raw, old.raw)
                for row, at in zip(rows, places, strict=False)
            ],
        )
        remove_empty(index)
