"""BLAKE3 in plain Python, for records of some kilobytes (spec/digest.md).

The verifier runs without the `blake3` distribution and still checks the digests of a manifest and
of derivations. Python's integers are as wide as one likes: the same 32-bit word of every chunk
lies in one of them, a lane of 64 bits each, so that one addition serves all chunks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

_IV = (
    *(0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A),
    *(0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19),
)
_ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
_DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
_STEPS = tuple(enumerate(_COLUMNS + _DIAGONALS))
_CHUNK, _BLOCK, _MASK = 1024, 64, 0xFFFFFFFF
_CHUNK_START, _CHUNK_END, _PARENT, _ROOT, _CONTEXT, _MATERIAL = 1, 2, 4, 8, 32, 64

_Words = tuple[int, ...]


def blake3(data: bytes, *, context: str | None = None) -> bytes:
    """The BLAKE3-256 of `data`, in key-derivation mode where a `context` is given."""
    if context is None:
        return _digest(data, _IV, 0)
    return _digest(data, _words(_digest(context.encode(), _IV, _CONTEXT)), _MATERIAL)


def _digest(data: bytes, key: _Words, flags: int) -> bytes:
    full = max(len(data) - 1, 0) // _CHUNK
    nodes = _full_chunks(data[: full * _CHUNK], key, flags) if full else []
    last = data[full * _CHUNK :]
    nodes.append(_last_chunk(last, full, key, flags, root=0 if full else _ROOT))
    while len(nodes) > 1:
        root = _ROOT if len(nodes) == 2 else 0
        above = _parents(nodes, key, flags | _PARENT | root)
        nodes = above + nodes[2 * len(above) :]  # a node without a sibling rises as it is
    return struct.pack("<8I", *nodes[0])


def _full_chunks(data: bytes, key: _Words, flags: int) -> list[_Words]:
    """The chaining values of the whole chunks that `data` is made of, all at once."""
    count, words = len(data) // _CHUNK, _words(data)
    unit, counters = _lanes([1] * count), _lanes(range(count))
    chaining = tuple(word * unit for word in key)
    for first in range(0, _CHUNK // 4, _BLOCK // 4):
        block = [_lanes(words[first + at :: _CHUNK // 4]) for at in range(16)]
        edge = _CHUNK_START if first == 0 else _CHUNK_END if first == 240 else 0
        chaining = _compress(chaining, block, counters, _BLOCK, flags | edge, unit)
    return _each(chaining, count)


def _last_chunk(data: bytes, counter: int, key: _Words, flags: int, *, root: int) -> _Words:
    chaining, edge = key, _CHUNK_START
    blocks = [data[at : at + _BLOCK] for at in range(0, len(data), _BLOCK)] or [b""]
    for block in blocks[:-1]:
        chaining = _compress(chaining, _words(block), counter, _BLOCK, flags | edge, 1)
        edge = 0
    last = blocks[-1]
    edge |= _CHUNK_END | root
    padded = _words(last.ljust(_BLOCK, b"\0"))
    return _compress(chaining, padded, counter, len(last), flags | edge, 1)


def _parents(nodes: Sequence[_Words], key: _Words, flags: int) -> list[_Words]:
    """The nodes above each two of `nodes`, all at once."""
    pairs = [left + right for left, right in zip(nodes[::2], nodes[1::2], strict=False)]
    unit = _lanes([1] * len(pairs))
    block = [_lanes(column) for column in zip(*pairs, strict=True)]
    chaining = tuple(word * unit for word in key)
    return _each(_compress(chaining, block, 0, _BLOCK, flags, unit), len(pairs))


def _words(data: bytes) -> _Words:
    return struct.unpack(f"<{len(data) // 4}I", data)


def _lanes(values: Iterable[int]) -> int:
    """One integer with each of `values` in a lane of its own."""
    words = tuple(values)
    return int.from_bytes(struct.pack(f"<{len(words)}Q", *words), "little")


def _each(state: _Words, count: int) -> list[_Words]:
    """The words of every lane of `state`."""
    columns = (struct.unpack(f"<{count}Q", word.to_bytes(8 * count, "little")) for word in state)
    return list(zip(*columns, strict=True))


def _compress(  # noqa: PLR0917 - the six inputs of the specification
    chaining: _Words, block: Sequence[int], counter: int, length: int, flags: int, unit: int
) -> _Words:
    """One compression in every lane; `unit` has a 1 in each."""
    start = (word * unit for word in _IV[:4])
    state, mask = [*chaining, *start, counter, 0, length * unit, flags * unit], _MASK * unit
    for _ in range(7):
        for index, places in _STEPS:
            _mix(state, places, (block[2 * index], block[2 * index + 1]), mask)
        block = [block[at] for at in _ORDER]
    return tuple(state[at] ^ state[at + 8] for at in range(8))


def _mix(
    state: list[int], places: tuple[int, int, int, int], words: tuple[int, int], mask: int
) -> None:
    a, b, c, d = places
    va, vb, vc, vd = state[a], state[b], state[c], state[d]
    for word, turn, twist in ((words[0], 16, 12), (words[1], 8, 7)):
        va = (va + vb + word) & mask
        vd ^= va
        vd = (vd >> turn | vd << 32 - turn) & mask
        vc = (vc + vd) & mask
        vb ^= vc
        vb = (vb >> twist | vb << 32 - twist) & mask
    state[a], state[b], state[c], state[d] = va, vb, vc, vd
