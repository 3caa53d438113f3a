"""Sums of products B A, exactly: stacked, or factored again to the rank that they had (FED-90 on).

The mean of the products is not the product of the means. FLoRA (arXiv:2409.05976, equation 4)
keeps every site's factors side by side; FlexLoRA (arXiv:2402.11505, section 3.2) takes the best
approximation of the adapter's rank, by singular values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kolm_build.steps.federated._ordered import Array, orthogonal, product, singular_values
from kolm_build.steps.federated._tensors import AdapterFolder, Arrays

A, B = ".lora_A.weight", ".lora_B.weight"


def stacked(adapters: Sequence[AdapterFolder], weights: Sequence[int]) -> AdapterFolder:
    """One adapter whose product is the weighted mean of the products.

    Args:
        adapters: The sites' adapters, sorted by site; ranks may differ.
        weights: What each counts.
    """
    whole = sum(weights)
    ranks = [one.rank for one in adapters]
    arrays: dict[str, Array] = {}
    for module in _modules(adapters[0].arrays):
        arrays[module + A] = np.concatenate([one.arrays[module + A] for one in adapters], axis=0)
        scaled = [
            one.arrays[module + B] * _scale(one, weight, whole)
            for one, weight in zip(adapters, weights, strict=True)
        ]
        arrays[module + B] = np.concatenate(scaled, axis=1)
    config = _config(adapters[0].config, rank=sum(ranks), alpha=sum(ranks))
    return AdapterFolder(arrays=arrays, config=config)


def _scale(adapter: AdapterFolder, weight: int, whole: int) -> np.float64:
    """Weight / whole * alpha / r: the stacked adapter itself is scaled by rank / rank = 1."""
    return np.float64(weight * adapter.alpha) / np.float64(whole * adapter.rank)


def factored(
    adapters: Sequence[AdapterFolder], weights: Sequence[int], like: AdapterFolder
) -> AdapterFolder:
    """The adapter of the rank of `like` whose product is nearest to that of `stacked`.

    B is U sqrt(s), A is sqrt(s) V^T, for the greatest singular values.
    """
    whole = stacked(adapters, weights)
    scale = np.float64(like.alpha) / np.float64(like.rank)
    arrays: dict[str, Array] = {}
    for module in _modules(whole.arrays):
        down, up = whole.arrays[module + A], whole.arrays[module + B]
        q_up, r_up = orthogonal(up)
        q_down, r_down = orthogonal(np.ascontiguousarray(down.T))
        left, values, right = singular_values(product(r_up, np.ascontiguousarray(r_down.T)))
        rank = min(like.rank, len(values))
        root = np.sqrt(values[:rank] / scale)
        made_up = product(q_up, left[:, :rank]) * root
        made_down = (product(q_down, right[:, :rank]) * root).T
        arrays[module + B] = _padded(made_up, like.rank, axis=1)
        arrays[module + A] = _padded(made_down, like.rank, axis=0)
    return AdapterFolder(arrays=arrays, config=like.config)


def _padded(matrix: Array, rank: int, *, axis: int) -> Array:
    """`matrix` with zeros up to `rank`."""
    more = [(0, 0), (0, 0)]
    more[axis] = (0, rank - matrix.shape[axis])
    return np.pad(matrix, more)


def _modules(arrays: Arrays) -> list[str]:
    return sorted(name.removesuffix(A) for name in arrays if name.endswith(A))


def _config(config: Mapping[str, object], *, rank: int, alpha: int) -> dict[str, object]:
    return {**config, "r": rank, "lora_alpha": alpha}
