"""QR and singular values by algorithms whose every rounding is fixed (ADPT-20 to ADPT-23).

LAPACK's kernels differ between machines. Here large matrices meet in matrix products alone, which
`portable-1` computes in a fixed order, and small ones in elementwise binary64 arithmetic, whose
operations IEEE 754 rounds in one way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

OVERSAMPLING = 8
LEAST_SAMPLES = 64
POWER_ITERATIONS = 4
_NOTHING_LEFT = 2.0**-18
"""A column of which less than this share is left lies in the span of those before it."""
_SWEEPS = 40
_ORTHOGONAL = 2.0**-48

Array = NDArray[Any]


def orthonormal(matrix: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns that span those of `matrix`: Gram-Schmidt, each projection twice.

    Args:
        matrix: Shape (rows, columns), float32.

    Returns:
        The same shape. A column that depends on those before it becomes zero.
    """
    basis = torch.zeros_like(matrix)
    for at in range(matrix.shape[1]):
        column = matrix[:, at : at + 1]
        before = torch.linalg.vector_norm(column)
        known = basis[:, :at]
        for _ in range(2 if at else 0):
            column = column - known @ (known.T @ column)
        length = torch.linalg.vector_norm(column)
        if bool(length > before * _NOTHING_LEFT):
            basis[:, at : at + 1] = column / length
    return basis


def leading_qr(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `rank` columns of Q and rows of R where Q R = `matrix`; R's diagonal is positive.

    Returns:
        Shapes (rows, rank) and (rank, columns), float32; what a matrix has no more of is zero.
    """
    found = min(rank, *matrix.shape)
    q = torch.zeros(matrix.shape[0], rank)
    q[:, :found] = orthonormal(matrix[:, :found])
    return q, q.T @ matrix


def leading_svd(
    matrix: torch.Tensor, rank: int, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `rank` greatest singular values of `matrix` and their vectors.

    A randomised subspace iteration (arXiv:0909.4061) with
    `POWER_ITERATIONS` rounds; the small factor by `jacobi`.

    Args:
        matrix: Shape (rows, columns), float32.
        rank: How many.
        noise: Normal numbers, shape (columns, `samples(matrix, rank)`).

    Returns:
        U, shape (rows, rank), values, shape (rank,), and V', shape (rank, columns), float32; of
        each U the entry of greatest magnitude, the first of such, is positive.
    """
    basis = orthonormal(matrix @ noise)
    for _ in range(POWER_ITERATIONS):
        basis = orthonormal(matrix @ orthonormal(matrix.T @ basis))
    rest = matrix.T @ basis
    right = orthonormal(rest)
    u, values, v = jacobi((right.T @ rest).T.numpy())
    left = basis @ torch.from_numpy(u.astype(np.float32))
    right = right @ torch.from_numpy(v.astype(np.float32))
    signs = _signs(left)
    kept = min(rank, len(values))
    return (
        _widened(left * signs, rank),
        _widened(torch.from_numpy(values.astype(np.float32))[None, :kept], rank)[0],
        _widened(right * signs, rank).T,
    )


def samples(matrix: torch.Tensor, rank: int) -> int:
    """How many directions `leading_svd` looks in."""
    return min(max(rank + OVERSAMPLING, LEAST_SAMPLES), *matrix.shape)


def jacobi(matrix: Array) -> tuple[Array, Array, Array]:
    """The singular value decomposition of a small square matrix: one-sided Jacobi rotations.

    Every sweep rotates each pair of columns once, in the order of a round-robin tournament, until
    no pair is farther from a right angle than rounding.

    Args:
        matrix: Shape (size, size).

    Returns:
        U and V, shape (size, size), and the values, descending, with U diag(values) V' = matrix,
        binary64. A vector of a value 0 is zero in U.
    """
    size = matrix.shape[0]
    columns = matrix.astype(np.float64)
    turned = np.eye(size)
    for _ in range(_SWEEPS):
        farthest = 0.0
        for left, right in _rounds(size):
            farthest = max(farthest, _rotate(columns, turned, left, right))
        if farthest <= _ORTHOGONAL:
            break
    values = np.sqrt(_sum(columns * columns))
    order = np.argsort(-values, kind="stable")
    values, columns, turned = values[order], columns[:, order], turned[:, order]
    return columns / np.where(values > 0, values, 1.0), values, turned


def _rotate(columns: Array, turned: Array, left: Array, right: Array) -> float:
    """Make the columns `left` and `right` orthogonal, pair by pair; the greatest cosine before."""
    first, second = columns[:, left], columns[:, right]
    alpha, beta = _sum(first * first), _sum(second * second)
    gamma = _sum(first * second)
    lengths = np.sqrt(alpha) * np.sqrt(beta)
    cosines = np.where(lengths > 0, np.abs(gamma) / np.where(lengths > 0, lengths, 1.0), 0.0)
    turns = cosines > _ORTHOGONAL
    zeta = (beta - alpha) / np.where(turns, 2 * gamma, 1.0)
    tangent = np.where(zeta < 0, -1.0, 1.0) / (np.abs(zeta) + np.sqrt(1 + zeta * zeta))
    cosine = np.where(turns, 1 / np.sqrt(1 + tangent * tangent), 1.0)
    sine = np.where(turns, cosine * tangent, 0.0)
    for whole in (columns, turned):
        one, other = whole[:, left], whole[:, right]
        whole[:, left] = cosine * one - sine * other
        whole[:, right] = sine * one + cosine * other
    return float(cosines.max(initial=0.0))


def _rounds(size: int) -> list[tuple[Array, Array]]:
    """Every pair of columns once, in rounds of pairs that share none (the circle method)."""
    players = list(range(size + size % 2))
    rounds = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        pairs = [
            (min(pair), max(pair))
            for pair in zip(players[:half], reversed(players[half:]), strict=True)
            if max(pair) < size
        ]
        both = np.array(pairs, dtype=np.intp).reshape(-1, 2)
        rounds.append((both[:, 0], both[:, 1]))
        players = [players[0], players[-1], *players[1:-1]]
    return rounds


def _sum(rows: Array) -> Array:
    """The sum of `rows`, from the first to the last."""
    return np.cumsum(rows, axis=0)[-1]  # each sum is the one before and a row, nothing else


def _signs(left: torch.Tensor) -> torch.Tensor:
    """1 or -1 for each column: the sign of its entry of greatest magnitude."""
    at = left.abs().argmax(dim=0, keepdim=True)
    return torch.where(left.gather(0, at) < 0, -1.0, 1.0)


def _widened(matrix: torch.Tensor, columns: int) -> torch.Tensor:
    """The first `columns` columns of `matrix`, with zeros where it has fewer."""
    made = torch.zeros(matrix.shape[0], columns)
    kept = min(columns, matrix.shape[1])
    made[:, :kept] = matrix[:, :kept]
    return made
