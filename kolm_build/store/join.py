"""Joined blobs: a safetensors file kept as its header and its tensors (spec/store.md).

Each tensor's payload is a blob of its own, so models that share tensors share bytes. A short
record says which blobs, in order, are the file; it ends in its own digest, because its name is
the digest of the file and not of the record.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from blake3 import blake3

from kolm_build.core import cbor, safetensors
from kolm_build.core.digest import DIGEST_BYTES, Digest
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError

VERSION = 1
SMALL_TENSOR_BYTES = 4096
"""Neighbours that are smaller than this share one part: a file each would cost more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """A blob in parts.

    Attributes:
        b3: The digest of the whole.
        parts: Digest and size of each part, in order.
    """

    b3: Digest
    parts: tuple[tuple[Digest, int], ...]

    @property
    def size_bytes(self) -> int:
        """The size of the whole."""
        return sum(size for _, size in self.parts)

    def encode(self) -> bytes:
        """The record's bytes, its digest at their end."""
        parts = [[b3.raw, size] for b3, size in self.parts]
        record = cbor.encode({"v": VERSION, "b3": self.b3.raw, "parts": parts})
        return record + blake3(record).digest()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The inverse of `encode`, strict.

        Raises:
            InvalidRecordError: A byte of it changed.
        """
        record, check = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
        if blake3(record).digest() != check:
            raise InvalidRecordError("the record does not have the digest at its end")
        fields = Fields(cbor.decode(record))
        fields.version(VERSION)
        made = cls(b3=Digest(fields.take("b3", bytes)), parts=fields.records("parts", _part))
        fields.done()
        return made


def _part(value: object) -> tuple[Digest, int]:
    match value:
        case [bytes(raw), int(size)]:
            return Digest(raw), size
        case _:
            raise InvalidRecordError("a part is a digest and a size")


def segments(header: bytes, file_size: int) -> tuple[int, ...]:
    """The sizes of the parts that a safetensors file is kept in.

    The header is one; then each tensor of 4 KiB or more, and each run of smaller ones.

    Args:
        header: The bytes after the length.
        file_size: The size of the file.

    Returns:
        Sizes that add up to `file_size`; a single one where there is no large tensor.

    Raises:
        InvalidRecordError: It is no strict safetensors file; keep it whole.
    """
    parsed = safetensors.parse_header(header, file_size)
    sizes = tuple(_merged(tensor.end - tensor.begin for tensor in parsed.tensors))
    if not any(size >= SMALL_TENSOR_BYTES for size in sizes):
        return (file_size,)
    return (parsed.data_start, *sizes)


def _merged(sizes: Iterable[int]) -> Iterable[int]:
    """`sizes` with each run of small ones added up."""
    run = 0
    for size in sizes:
        if size < SMALL_TENSOR_BYTES:
            run += size
            continue
        if run:
            yield run
        run = 0
        yield size
    if run:
        yield run
