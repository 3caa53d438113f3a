"""Tokens drawn by their probabilities, the same ones in batches of any size (RL-3 to RL-5, GEN-7).

A token is drawn by the inverse of the distribution function, its tokens in the order of their ids,
at a number that a seed, the completion and the token's place decide. Probabilities are rounded to
whole numbers before they are added, so no order of addition can change a draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from kolm_build.runtime.distribution import Distribution

TYPE_CHECKING = False
if TYPE_CHECKING:
    import torch

WHOLE = 1 << 45
"""What a probability of 1 is as a whole number; a sum of them is exact in binary64 too."""

Weights = np.ndarray[Any, np.dtype[np.int64]]
"""Whole numbers in proportion to probabilities, rows by vocabulary."""


def draw_number(seed: int, completion: int, token: int) -> int:
    """What decides a draw: 64 bits (RL-3)."""
    text = f"kolm_build 2026 sample v1 {seed} {completion} {token}"
    return int.from_bytes(sha256(text.encode()).digest()[:8])


def drawn(logits: torch.Tensor, distribution: Distribution, numbers: Sequence[int]) -> list[int]:
    """A token for each row of `logits`, shape (rows, vocabulary), by its 64-bit number.

    Determinism:
        Bitwise, given the probabilities: everything after them is whole numbers (RL-4).
    """
    chances = (logits / distribution.temperature).softmax(dim=-1)
    return drawn_from(chances.numpy(), distribution, numbers)


def drawn_from(
    chances: np.ndarray[Any, np.dtype[np.float32]],
    distribution: Distribution,
    numbers: Sequence[int],
) -> list[int]:
    """As `drawn`, given the probabilities, which the temperature has made already."""
    weights = _filtered((chances.astype(np.float64) * WHOLE).astype(np.int64), distribution)
    below = weights.cumsum(axis=-1)
    return [
        int(np.searchsorted(row, (number * int(row[-1])) >> 64, side="right"))
        for row, number in zip(below, numbers, strict=True)
    ]


def _filtered(weights: Weights, distribution: Distribution) -> Weights:
    if distribution.top_k:
        weights = likeliest(weights, distribution.top_k)
    if distribution.top_p < 1.0:
        weights = nucleus(weights, distribution.top_p)
    if distribution.min_p:
        weights = near_the_likeliest(weights, distribution.min_p)
    return weights


def likeliest(weights: Weights, top_k: int) -> Weights:
    """`weights` but for tokens outside the `top_k` likeliest; of equals the lower id is before."""
    ranks = _order(weights)[:, :top_k]
    out = np.zeros_like(weights)
    np.put_along_axis(out, ranks, np.take_along_axis(weights, ranks, axis=-1), axis=-1)
    return out


def nucleus(weights: Weights, top_p: float) -> Weights:
    """`weights` but for tokens outside the likeliest that make up `top_p`.

    A token is kept if those before it have less than `top_p` of all; of equals the lower id is
    before the other (arXiv:1904.09751, section 3.1).
    """
    order = _order(weights)
    ranked = np.take_along_axis(weights, order, axis=-1)
    before = ranked.cumsum(axis=-1) - ranked
    kept = before < top_p * weights.sum(axis=-1, keepdims=True)
    out = np.zeros_like(weights)
    np.put_along_axis(out, order, ranked * kept, axis=-1)
    return out


def near_the_likeliest(weights: Weights, min_p: float) -> Weights:
    """`weights` but for tokens of less than `min_p` of the largest weight (arXiv:2407.01082)."""
    return weights * (weights >= min_p * weights.max(axis=-1, keepdims=True))


def _order(weights: Weights) -> np.ndarray[Any, Any]:
    """Token ids by falling weight, equal ones by rising id."""
    return np.argsort(-weights, axis=-1, kind="stable")
