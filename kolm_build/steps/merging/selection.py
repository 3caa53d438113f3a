"""The elements of largest magnitude: as many as asked for, with a rule for ties (MERGE-7)."""

from __future__ import annotations

from fractions import Fraction

import torch

_MAGNITUDE = 0x7FFFFFFF
_HALF = 16


def count_of(share: Fraction, elements: int) -> int:
    """`share` of `elements`, rounded down; 1 at the least where the share is not 0."""
    count = int(share * elements)
    return max(count, 1) if share and elements else count


def largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Which `count` elements have the largest magnitude; of equals the first are taken.

    The threshold is found with integers alone: the bits of a magnitude, as a number, are in the
    order of the magnitudes.

    Args:
        values: Float32, finite.
        count: How many; all where there are fewer.

    Returns:
        Booleans in the shape of `values`.
    """
    if count >= values.numel():
        return torch.ones_like(values, dtype=torch.bool)
    if count <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    bits = values.reshape(-1).view(torch.int32) & _MAGNITUDE
    threshold, above = _threshold(bits, count)
    taken = bits > threshold
    equal = (bits == threshold).nonzero().reshape(-1)
    taken[equal[: count - above]] = True
    return taken.reshape(values.shape)


def _threshold(bits: torch.Tensor, count: int) -> tuple[int, int]:
    """The `count`-th largest of `bits`, and how many are larger."""
    high = torch.bitwise_right_shift(bits, _HALF)
    first, above = _bucket(high, count)
    low = bits[high == first] & ((1 << _HALF) - 1)
    second, more = _bucket(low, count - above)
    return (first << _HALF) | second, above + more


def _bucket(numbers: torch.Tensor, count: int) -> tuple[int, int]:
    """The `count`-th largest of `numbers`, small whole numbers, and how many are larger."""
    held = torch.bincount(numbers).flip(0)
    reached = held.cumsum(0)
    index = int((reached < count).sum())
    return len(held) - 1 - index, int(reached[index] - held[index])
