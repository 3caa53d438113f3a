"""Float32 rows to the blocks that ggml stores (spec/exports.md, section "Blocks").

Q8_0, Q4_0 and Q5_0 are the gguf package's. Q4_K and Q6_K, which it reads and does not write, are
here: the search of ggml's reference (`quantize_row_q4_K_ref`, `quantize_row_q6_K_ref`), every sum
taken from the first value to the last, every operation rounded to float32 and none contracted. So
the bytes are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import quantize

from kolm_build.errors import InvalidRecordError
from kolm_build.steps._weights import Array

_SUPER = 256
"""Values of a super-block."""

_AT_ONCE = 1024
"""Super-blocks in memory at once: what is searched stays in the processor's cache."""

_SMALLEST = np.float32(1e-15)
"""A sub-block whose values are all smaller is zero in Q6_K."""


def blocks(values: Array, kind: Kind) -> Array:
    """The rows of the float32 matrix `values` as uint8 rows of blocks of `kind`.

    Args:
        values: [rows, columns]; the columns are a multiple of the kind's block.
        kind: F16, F32, Q4_0, Q4_K, Q5_0, Q6_K or Q8_0.

    Raises:
        InvalidRecordError: A value or a block's scale is too large for half precision.
    """
    if kind in (Kind.Q4_K, Kind.Q6_K):
        make = _q4_k if kind is Kind.Q4_K else _q6_k
        made = [make(piece) for piece in _pieces(values.reshape(-1, _SUPER))]
        return np.concatenate(made).reshape(len(values), -1)
    with np.errstate(over="ignore"):  # what overflows is refused below
        stored = np.ascontiguousarray(quantize(values, kind)).view(np.uint8)
    if kind is not Kind.F32:
        # A half is the first of each of these blocks, and all of an F16.
        _check_halves(stored.reshape(-1, GGML_QUANT_SIZES[kind][1])[:, :2].copy().view("<f2"))
    return stored.reshape(len(values), -1)


def block_values(kind: Kind) -> int:
    """The number of values of a block of `kind`."""
    return GGML_QUANT_SIZES[kind][0]


def _pieces(rows: Array) -> Iterator[Array]:
    yield from (rows[at : at + _AT_ONCE] for at in range(0, len(rows), _AT_ONCE))


class _Fit(NamedTuple):
    """Sub-blocks as scale * code - minimum; codes are [values, sub-blocks]."""

    codes: Array
    scale: Array
    minimum: Array


def _q4_k(values: Array) -> Array:
    """Super-blocks [n, 256] as Q4_K: [n, 144] of half, half, eight 6-bit pairs, 128 bytes."""
    count = len(values)
    columns = _columns(values, 32)
    fit = _fit_q4(columns)
    scales, minima = fit.scale.reshape(count, 8), fit.minimum.reshape(count, 8)
    top_scale, top_minimum = _top(scales), _top(minima)
    codes_scale = _sixths(scales, top_scale)
    codes_minimum = _sixths(minima, top_minimum)
    d, dmin = _half(top_scale / np.float32(63)), _half(top_minimum / np.float32(63))
    step = (d.astype(np.float32) * codes_scale).reshape(-1)
    offset = (dmin.astype(np.float32) * codes_minimum).reshape(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        again = np.clip(np.rint((columns + offset) / step), 0, 15)
    codes = np.where(step == 0, fit.codes, again).astype(np.uint8)
    quarters = codes.T.reshape(count, 4, 2, 32)
    packed = quarters[:, :, 0] | (quarters[:, :, 1] << 4)
    return np.concatenate(
        [
            d.view(np.uint8),
            dmin.view(np.uint8),
            _packed_sixths(codes_scale.astype(np.uint8), codes_minimum.astype(np.uint8)),
            packed.reshape(count, -1),
        ],
        axis=1,
    )


def _fit_q4(columns: Array) -> _Fit:
    """The best of 22 scales for each sub-block, by a weighted squared error.

    Args:
        columns: [32, sub-blocks]; the weight of a value is its size and the root mean square.
    """
    size = np.sqrt(_sum(columns * columns) / np.float32(32))
    weights = size + np.abs(columns)
    low, high = np.minimum(columns.min(axis=0), np.float32(0)), columns.max(axis=0)
    flat = high == low
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        best = _first_q4(columns, weights, low, high)
        sums = _sum(weights), _sum(weights * columns)
        for number in range(21):
            steps = (np.float32(0.1) * np.float32(number) - np.float32(1)) + np.float32(15)
            best = _better_q4(columns, weights, steps / (high - best[2]), sums, best)
    codes, scale, low, _ = best
    return _Fit(
        codes=np.where(flat, np.float32(0), codes),
        scale=np.where(flat, np.float32(0), scale),
        minimum=-np.where(flat, columns[0], low),
    )


_Best = tuple[Array, Array, Array, Array]
"""Codes, scale, minimum and error so far."""


def _first_q4(columns: Array, weights: Array, low: Array, high: Array) -> _Best:
    inverse = np.float32(15) / (high - low)
    scale = np.float32(1) / inverse
    codes = _codes(columns, low, inverse)
    return codes, scale, low, _error(columns, weights, (codes, scale, low))


def _better_q4(
    columns: Array, weights: Array, inverse: Array, sums: tuple[Array, Array], best: _Best
) -> _Best:
    """`best`, or what least squares makes of the codes of another scale, where that is better."""
    sum_w, sum_x = sums
    codes = _codes(columns, best[2], inverse)
    weighted = weights * codes
    sum_l, sum_l2, sum_xl = _sum(weighted), _sum(weighted * codes), _sum(weighted * columns)
    divisor = sum_w * sum_l2 - sum_l * sum_l
    scale = (sum_w * sum_xl - sum_x * sum_l) / divisor
    offset = (sum_l2 * sum_x - sum_l * sum_xl) / divisor
    positive = offset > 0
    scale = np.where(positive, sum_xl / sum_l2, scale)
    offset = np.where(positive, np.float32(0), offset)
    error = _error(columns, weights, (codes, scale, offset))
    wins = (divisor > 0) & (error < best[3])
    return (
        np.where(wins, codes, best[0]),
        np.where(wins, scale, best[1]),
        np.where(wins, offset, best[2]),
        np.where(wins, error, best[3]),
    )


def _codes(columns: Array, low: Array, inverse: Array) -> Array:
    return np.clip(np.rint(inverse * (columns - low)), 0, 15)


def _error(columns: Array, weights: Array, fit: tuple[Array, Array, Array]) -> Array:
    codes, scale, low = fit
    off = scale * codes + low - columns
    return _sum(weights * (off * off))


def _sixths(values: Array, top: Array) -> Array:
    """`values` as 6-bit codes of which 63 is `top`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(top > 0, np.float32(63) / top, np.float32(0))
    return np.minimum(np.rint(inverse * values), np.float32(63))


def _packed_sixths(scales: Array, minima: Array) -> Array:
    """Eight 6-bit scales and minima in 12 bytes: the last four share their upper bits out."""
    low = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
    mid = minima[:, :4] | ((minima[:, 4:] >> 4) << 6)
    last = (scales[:, 4:] & 0xF) | ((minima[:, 4:] & 0xF) << 4)
    return np.concatenate([low, mid, last], axis=1)


def _q6_k(values: Array) -> Array:
    """Super-blocks [n, 256] as Q6_K: [n, 210] of 128 low, 64 high, 16 scales, half."""
    count = len(values)
    columns = _columns(values, 16)
    codes, scale = _fit_q6(columns)
    scales = scale.reshape(count, 16)
    at = np.abs(scales).argmax(axis=1, keepdims=True)
    top = np.take_along_axis(scales, at, axis=1)
    empty = np.abs(top) < _SMALLEST
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.float32(-128) / top
        d = _half(np.where(empty, np.float32(0), np.float32(1) / inverse))
        steps = np.minimum(np.rint(inverse * scales), np.float32(127))
        steps = np.where(empty, np.float32(0), steps)
        each = (d.astype(np.float32) * steps).reshape(-1)
        again = np.clip(np.rint(columns / each), -32, 31) + np.float32(32)
    codes = np.where(each == 0, codes, again).T.reshape(count, 256)
    codes = np.where(empty, np.float32(0), codes).astype(np.uint8)
    return np.concatenate(
        [_packed_q6(codes), steps.astype(np.int8).view(np.uint8), d.view(np.uint8)], axis=1
    )


def _fit_q6(columns: Array) -> tuple[Array, Array]:
    """Codes 0 to 63 and the best of 19 scales for each sub-block, weighted by the square.

    Args:
        columns: [16, sub-blocks].
    """
    at = np.abs(columns).argmax(axis=0)[None]
    top = np.take_along_axis(columns, at, axis=0)[0]
    weights = columns * columns
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        codes, sum_xl, sum_l2 = _try_q6(columns, weights, np.float32(-32) / top)
        scale = np.where(sum_l2 != 0, sum_xl / sum_l2, np.float32(0))
        best = scale * sum_xl
        for number in (*range(-9, 0), *range(1, 10)):
            inverse = -(np.float32(32) + np.float32(0.1) * np.float32(number)) / top
            other, sum_xl, sum_l2 = _try_q6(columns, weights, inverse)
            wins = (sum_l2 > 0) & (sum_xl * sum_xl > best * sum_l2)
            codes = np.where(wins, other, codes)
            scale = np.where(wins, sum_xl / sum_l2, scale)
            best = np.where(wins, scale * sum_xl, best)
    empty = np.abs(top) < _SMALLEST
    nothing = np.float32(0)
    return np.where(empty, nothing, codes + np.float32(32)), np.where(empty, nothing, scale)


def _try_q6(columns: Array, weights: Array, inverse: Array) -> tuple[Array, Array, Array]:
    codes = np.clip(np.rint(inverse * columns), -32, 31)
    return codes, _sum(weights * columns * codes), _sum(weights * codes * codes)


def _packed_q6(codes: Array) -> Array:
    """Codes [n, 256] as 128 bytes of low nibbles and 64 bytes of high pairs."""
    quarters = codes.reshape(-1, 2, 4, 32)
    low = (quarters & 0xF)[:, :, :2] | ((quarters & 0xF)[:, :, 2:] << 4)
    high = quarters >> 4
    pairs = high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)
    return np.concatenate([low.reshape(len(codes), -1), pairs.reshape(len(codes), -1)], axis=1)


def _columns(values: Array, size: int) -> Array:
    """Super-blocks as sub-blocks of `size` values side by side: [size, sub-blocks]."""
    return np.ascontiguousarray(values.reshape(-1, size).T, np.float32)


def _sum(columns: Array) -> Array:
    """The sum of each column, from its first value to its last: no order that a library picks."""
    total = columns[0].copy()
    for row in columns[1:]:
        total += row
    return total


def _top(values: Array) -> Array:
    """The largest value of each row, at least 0, as a column."""
    return np.maximum(values.max(axis=1, keepdims=True), np.float32(0))


def _half(values: Array) -> Array:
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    _check_halves(halves)
    return halves


def _check_halves(halves: Array) -> None:
    if not np.isfinite(halves).all():
        raise InvalidRecordError(
            "a weight too large for half precision",
            expected="values to 65504, or blocks whose scale is not more",
            advice="Export it as safetensors or modelpack.",
        )
