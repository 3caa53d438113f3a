"""NormalFloat of four bits (arXiv:2305.14314, section 3 and appendix E), by own code (ADPT-10)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

CODES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The sixteen values, as float32: the quantiles of a normal distribution, scaled to 1."""

BLOCK = 64
"""Elements that share a scale."""

_TABLE = np.array(CODES, dtype=np.float32)
_MIDDLES = (_TABLE[:-1].astype(np.float64) + _TABLE[1:]) / 2
"""Exact: the sum of two float32 numbers of like size has less than 53 bits."""

Array = NDArray[Any]


def quantise(values: Array) -> tuple[Array, Array]:
    """Codes and scales of `values`.

    Args:
        values: Float32, any shape; blocks are taken in the order in which it lies.

    Returns:
        Codes from 0 to 15, uint8, shape (blocks, 64), and the largest magnitude of each block,
        float32, shape (blocks, 1). The last block is filled up with zeros.
    """
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    padded = np.zeros(-(-flat.size // BLOCK) * BLOCK, dtype=np.float32)
    padded[: flat.size] = flat
    blocks = padded.reshape(-1, BLOCK)
    scales = np.abs(blocks).max(axis=1, keepdims=True)
    shares = blocks / np.where(scales == 0, np.float32(1), scales)
    return np.searchsorted(_MIDDLES, shares, side="left").astype(np.uint8), scales


def dequantise(codes: Array, scales: Array, shape: tuple[int, ...]) -> Array:
    """The values that `codes` and `scales` stand for, float32: each product rounded once."""
    size = int(np.prod(shape))
    return (_TABLE[codes] * scales).reshape(-1)[:size].reshape(shape)


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, float32, as it is once it was NF4."""
    values = tensor.detach().contiguous().numpy()
    return torch.from_numpy(dequantise(*quantise(values), values.shape))
