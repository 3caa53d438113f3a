"""Orthogonal matrices by Cayley's transform, in certified operations (ADPT-30, ADPT-31)."""

from __future__ import annotations

import torch


def cayley(skew: torch.Tensor) -> torch.Tensor:
    """(I - Q) (I + Q)^-1 of each skew-symmetric Q, by elimination without pivoting.

    The symmetric part of I + Q is I, so every pivot is at least 1 and no row need be exchanged;
    each step is elementwise, so gradients and results are the same on every machine.

    Args:
        skew: Shape (matrices, size, size), float32.

    Returns:
        The same shape; each matrix is orthogonal to rounding.
    """
    size = skew.shape[-1]
    eye = torch.eye(size, dtype=skew.dtype).expand_as(skew)
    # R (I + Q) = I - Q, transposed: (I - Q) R' = I + Q.
    rows = torch.cat([eye - skew, eye + skew], dim=2)
    for at in range(size):
        pivot = rows[:, at : at + 1] / rows[:, at : at + 1, at : at + 1]
        others = rows[:, :, at : at + 1] * _not(at, size)
        rows = rows - others * pivot
        rows = rows * _not(at, size) + pivot * (1 - _not(at, size))
    return rows[:, :, size:].transpose(1, 2)


def skew_of_upper(values: torch.Tensor, size: int) -> torch.Tensor:
    """The skew-symmetric matrices whose entries above the diagonal are `values`, row by row.

    Args:
        values: Shape (matrices, size (size - 1) / 2).
        size: Rows of a matrix.
    """
    rows, columns = torch.triu_indices(size, size, 1)
    upper = torch.zeros(len(values), size, size, dtype=values.dtype)
    upper = upper.index_put((torch.arange(len(values))[:, None], rows, columns), values)
    return upper - upper.transpose(1, 2)


def block_diagonal(blocks: torch.Tensor) -> torch.Tensor:
    """One square matrix with `blocks`, shape (count, size, size), along its diagonal."""
    count, size, _ = blocks.shape
    eye = torch.eye(count, dtype=blocks.dtype)
    return (eye[:, None, :, None] * blocks[:, :, None, :]).reshape(count * size, count * size)


def butterfly(blocks: torch.Tensor) -> torch.Tensor:
    """The product of block-diagonal factors, each in its butterfly order (ADPT-31).

    Args:
        blocks: Shape (factors, count, size, size); the first factor is applied last.
    """
    factors, count, size, _ = blocks.shape
    orders = [butterfly_order(count, size, factor) for factor in range(factors)]
    whole = torch.eye(count * size, dtype=blocks.dtype)
    for order, one in zip(orders, blocks, strict=True):
        back = torch.argsort(order)
        whole = block_diagonal(one)[back][:, back] @ whole
    return whole


def butterfly_order(count: int, size: int, factor: int) -> torch.Tensor:
    """Which column comes at which place before the blocks of `factor` (arXiv:2311.06243).

    Rows come in pairs of half blocks that lie 2**factor half blocks apart; the first factor joins
    neighbours, which is the order as it is.

    Returns:
        Shape (count * size,), a permutation.
    """
    half, halves, apart = size // 2, 2 * count, 1 << factor
    order: list[int] = []
    for start in range(0, halves, 2 * apart):
        for place in range(start, start + apart):
            order += [place, place + apart]
    starts = torch.tensor(order)[:, None] * half
    return (starts + torch.arange(half)).reshape(-1)


def _not(at: int, size: int) -> torch.Tensor:
    """1 in every row but `at`, shape (1, size, 1)."""
    mask = torch.ones(1, size, 1)
    mask[0, at, 0] = 0
    return mask
