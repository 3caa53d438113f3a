"""Packs: many small blobs in one file.

A file for each of ten thousand small blobs costs the disk more than their bytes do. A pack holds
their bytes one after the other, then a table that names them, and is an object itself, named by
the BLAKE3 of the whole, so one pass over it proves every blob in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kolm_build.core.digest import DIGEST_BYTES, Digest
from kolm_build.errors import InvalidRecordError

MAX_BLOB_BYTES = 64 << 10
"""Larger blobs are files of their own."""

COUNT_BYTES = 8
ENTRY_BYTES = DIGEST_BYTES + COUNT_BYTES


@dataclass(frozen=True, slots=True)
class Slice:
    """A blob's place in a pack.

    Attributes:
        b3: The blob.
        offset: Where it begins.
        size_bytes: How long it is.
    """

    b3: Digest
    offset: int
    size_bytes: int


def encode(blobs: Sequence[tuple[Digest, bytes]]) -> bytes:
    """A pack of these blobs: their bytes; for each its digest and size; their number."""
    table = [b3.raw + len(data).to_bytes(COUNT_BYTES, "little") for b3, data in blobs]
    count = len(blobs).to_bytes(COUNT_BYTES, "little")
    return b"".join((*(data for _, data in blobs), *table, count))


def decode(data: bytes) -> tuple[Slice, ...]:
    """The blobs of a pack.

    Raises:
        InvalidRecordError: It is not a pack.
    """
    end = len(data) - COUNT_BYTES
    begin = end - ENTRY_BYTES * int.from_bytes(data[max(end, 0) :], "little")
    if begin < 0:
        raise InvalidRecordError("not a pack: its table does not fit into it")
    slices = []
    offset = 0
    for at in range(begin, end, ENTRY_BYTES):
        size = int.from_bytes(data[at + DIGEST_BYTES : at + ENTRY_BYTES], "little")
        slices.append(Slice(Digest(data[at : at + DIGEST_BYTES]), offset, size))
        offset += size
    if offset != begin:
        raise InvalidRecordError("the blobs do not fill the pack", actual=f"{offset} of {begin}")
    return tuple(slices)
