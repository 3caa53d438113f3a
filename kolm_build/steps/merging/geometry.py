"""Lengths of tensors and angles between them, without overflow (MERGE-12)."""

from __future__ import annotations

import math

import torch

_MOST_EXPONENT = 126


def length(values: torch.Tensor) -> float:
    """The Euclidean length of all elements, in binary64."""
    scaled, exponent = _scaled(values)
    return math.ldexp(math.sqrt(float((scaled * scaled).sum())), exponent)


def direction(values: torch.Tensor) -> torch.Tensor | None:
    """`values` divided by their length; None where it is 0."""
    scaled, _ = _scaled(values)
    norm = math.sqrt(float((scaled * scaled).sum()))
    return scaled / norm if norm else None


def cosine(one: torch.Tensor | None, other: torch.Tensor | None) -> float:
    """The cosine of the angle between two directions, -1 to 1; 0 where one is none."""
    if one is None or other is None:
        return 0.0
    return min(1.0, max(-1.0, float((one * other).sum())))


def _scaled(values: torch.Tensor) -> tuple[torch.Tensor, int]:
    """`values` times a power of two that makes the largest about 1, and its exponent."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    exponent = max(-_MOST_EXPONENT, min(_MOST_EXPONENT, math.frexp(largest)[1]))
    return values * math.ldexp(1.0, -exponent), exponent
