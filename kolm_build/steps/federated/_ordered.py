"""Linear algebra in binary64 whose every operation is one of IEEE 754's, in a fixed order.

NumPy's elementwise functions round once; its products and sums of many numbers are left alone,
because their order is the machine's. So the results are the same bits everywhere (FED-70).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_SWEEPS = 60
_CLOSE = 2.0**-50
"""Columns whose cosine is not greater are orthogonal."""

_NOTHING = 2.0**-40
"""What is left of a column, over what it was, that is taken for nothing."""


def total(values: Array) -> Any:
    """The sum along the first axis: halves are added until one is left; short ones end in zeros."""
    size = 1 << max(0, len(values) - 1).bit_length()
    padded = np.zeros((size, *values.shape[1:]))
    padded[: len(values)] = values
    while len(padded) > 1:
        half = len(padded) // 2
        padded = padded[:half] + padded[half:]
    return padded[0]


def product(left: Array, right: Array) -> Array:
    """The matrix product: for k in order, column k of `left` times row k of `right` is added."""
    made = np.zeros((left.shape[0], right.shape[1]))
    for k in range(left.shape[1]):
        made = made + left[:, k, None] * right[None, k, :]
    return made


def orthogonal(matrix: Array) -> tuple[Array, Array]:
    """Q and R with `matrix` = Q R: Gram-Schmidt, each column twice against those before.

    A column that adds nothing to those before it has a column of zeros in Q.
    """
    rows, columns = matrix.shape
    q, r = np.zeros((rows, columns)), np.zeros((columns, columns))
    for k in range(columns):
        column = matrix[:, k].copy()
        before = np.sqrt(total(column * column))
        for _ in range(2):
            for j in range(k):
                part = total(q[:, j] * column)
                r[j, k] += part
                column = column - part * q[:, j]
        norm = np.sqrt(total(column * column))
        if norm > _NOTHING * before:
            q[:, k], r[k, k] = column / norm, norm
    return q, r


def singular_values(matrix: Array) -> tuple[Array, Array, Array]:
    """U, s and V with `matrix` = U diag(s) V^T, s falling: one-sided Jacobi rotations (Hestenes).

    Pairs of columns are turned in the order of a round-robin tournament; a singular value of 0 has
    a column of zeros in U.
    """
    size = matrix.shape[1]
    order = list(range(size + size % 2))
    work = np.zeros((matrix.shape[0], len(order)))
    work[:, :size] = matrix
    turned = np.eye(len(order))
    for _ in range(_SWEEPS):
        still = True
        for _ in range(len(order) - 1):
            still = _turn(work, turned, order) and still
            order = [order[0], order[-1], *order[1:-1]]
        if still:
            break
    values = np.sqrt(total(work * work))
    falling = np.argsort(-values, kind="stable")[:size]
    values, work, turned = values[falling], work[:, falling], turned[:size, falling]
    return work / np.where(values > 0, values, 1.0), values, turned


def _turn(work: Array, turned: Array, order: list[int]) -> bool:
    """Make half of the pairs of columns orthogonal, all at once; whether all were."""
    half = len(order) // 2
    first, second = order[:half], order[: half - 1 : -1]
    p, q = work[:, first], work[:, second]
    a, b, c = total(p * p), total(q * q), total(p * q)
    apart = np.abs(c) > _CLOSE * np.sqrt(a) * np.sqrt(b)
    if not apart.any():
        return True
    zeta = (b - a) / (2.0 * np.where(apart, c, 1.0))
    t = np.where(zeta >= 0, 1.0, -1.0) / (np.abs(zeta) + np.sqrt(1.0 + zeta * zeta))
    cosine = 1.0 / np.sqrt(1.0 + t * t)
    cosine, sine = np.where(apart, cosine, 1.0), np.where(apart, cosine * t, 0.0)
    for one in (work, turned):
        p, q = one[:, first], one[:, second]
        one[:, first], one[:, second] = cosine * p - sine * q, sine * p + cosine * q
    return False
