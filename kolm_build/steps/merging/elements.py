"""How a change meets the numbers that it changes, element by element (MERGE-5)."""

from __future__ import annotations

import torch


def moved(base: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """`base` + `change`; where the change is 0 the bits of `base`, the sign of a zero too."""
    return torch.where(change == 0, base, base + change)


def between(first: torch.Tensor, second: torch.Tensor, share: float) -> torch.Tensor:
    """`share` of the way from `first` to `second`; both ends, and equal elements, to the bit."""
    if share in (0, 1):
        return second if share else first
    return torch.where(first == second, first, torch.lerp(first, second, share))
