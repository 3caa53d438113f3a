"""BLAKE3 in plain Python, for records of some kilobytes (spec/digest.md).

The verifier runs without the `blake3` distribution and still checks the digests of a manifest and
of derivations. A megabyte takes seconds: everything large is hashed with the real one.
"""

from __future__ import annotations

import struct

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
_Node = tuple[_Words, _Words, int, int, int]
"""A compression that is still to do: chaining value, block, counter, length, flags."""


def blake3(data: bytes, *, context: str | None = None) -> bytes:
    """The BLAKE3-256 of `data`, in key-derivation mode where a `context` is given."""
    if context is None:
        return _digest(data, _IV, 0)
    key = _words(_digest(context.encode(), _IV, _CONTEXT))
    return _digest(data, key, _MATERIAL)


def _digest(data: bytes, key: _Words, flags: int) -> bytes:
    chaining, block, _, length, own = _node(data, 0, key, flags)
    return struct.pack("<8I", *_compress(chaining, block, 0, length, own | _ROOT))


def _node(data: bytes, counter: int, key: _Words, flags: int) -> _Node:
    """The top node over `data`, whose first chunk is number `counter`."""
    if len(data) <= _CHUNK:
        return _chunk(data, counter, key, flags)
    left = 1 << ((len(data) - 1) // _CHUNK).bit_length() - 1
    halves = (
        _compress(*_node(data[: left * _CHUNK], counter, key, flags)),
        _compress(*_node(data[left * _CHUNK :], counter + left, key, flags)),
    )
    return key, halves[0] + halves[1], 0, _BLOCK, flags | _PARENT


def _chunk(data: bytes, counter: int, key: _Words, flags: int) -> _Node:
    chaining, start = key, _CHUNK_START
    blocks = [data[at : at + _BLOCK] for at in range(0, len(data), _BLOCK)] or [b""]
    for block in blocks[:-1]:
        chaining = _compress(chaining, _words(block), counter, _BLOCK, flags | start)
        start = 0
    last = blocks[-1]
    padded = _words(last.ljust(_BLOCK, b"\0"))
    return chaining, padded, counter, len(last), flags | start | _CHUNK_END


def _words(data: bytes) -> _Words:
    return struct.unpack(f"<{len(data) // 4}I", data)


def _compress(chaining: _Words, block: _Words, counter: int, length: int, flags: int) -> _Words:
    state = [*chaining, *_IV[:4], counter & _MASK, counter >> 32, length, flags]
    for _ in range(7):
        for index, places in _STEPS:
            _mix(state, places, block[2 * index], block[2 * index + 1])
        block = tuple(block[at] for at in _ORDER)
    return tuple(state[at] ^ state[at + 8] for at in range(8))


def _mix(state: list[int], places: tuple[int, int, int, int], first: int, second: int) -> None:
    a, b, c, d = places
    va, vb, vc, vd = state[a], state[b], state[c], state[d]
    for word, turn, twist in ((first, 16, 12), (second, 8, 7)):
        va = (va + vb + word) & _MASK
        vd ^= va
        vd = (vd >> turn | vd << 32 - turn) & _MASK
        vc = (vc + vd) & _MASK
        vb ^= vc
        vb = (vb >> twist | vb << 32 - twist) & _MASK
    state[a], state[b], state[c], state[d] = va, vb, vc, vd
