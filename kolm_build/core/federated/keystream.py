"""Secret bytes from a seed: BLAKE3 in keyed mode, its output as long as needed (FED-30)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from blake3 import blake3

from kolm_build.errors import InvalidRecordError

SEED_BYTES = 32
WORD_BYTES = 8

Purpose = Literal["mask", "noise"]


def keystream(seed: bytes, *, purpose: Purpose, length: int, start: int = 0) -> bytes:
    """Bytes `start` to `start` + `length` of the stream of `seed` for one purpose.

    Raises:
        InvalidRecordError: A seed does not have 32 bytes.
    """
    if len(seed) != SEED_BYTES:
        raise InvalidRecordError(f"a seed has {SEED_BYTES} bytes", actual=str(len(seed)))
    text = f"kolm_build 2026 federated {purpose} v1".encode()
    return blake3(text, key=seed).digest(length=length, seek=start)


class Bits:
    """The bits of a stream for noise, lowest bit of the first byte first.

    Args:
        seed: The stream's seed.
    """

    __slots__ = ("_bits", "_blocks", "_count")

    def __init__(self, seed: bytes) -> None:
        self._blocks = _blocks(seed)
        self._bits = 0
        self._count = 0

    def take(self, count: int) -> int:
        """The next `count` bits as a number."""
        while self._count < count:
            block = next(self._blocks)
            self._bits |= int.from_bytes(block, "little") << self._count
            self._count += 8 * len(block)
        taken = self._bits & ((1 << count) - 1)
        self._bits >>= count
        self._count -= count
        return taken

    def below(self, bound: int) -> int:
        """A uniform number from 0 to `bound` - 1: the first draw of its length that is below."""
        width = (bound - 1).bit_length()
        while True:
            drawn = self.take(width)
            if drawn < bound:
                return drawn


def _blocks(seed: bytes) -> Iterator[bytes]:
    start = 0
    while True:
        yield keystream(seed, purpose="noise", length=_BLOCK, start=start)
        start += _BLOCK


_BLOCK = 64
"""Small, so that shifting the bits that are left costs little."""
