"""Torch's tensors as the weights that steps write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from kolm_build.numerics.state import DTYPE_NAMES, payload
from kolm_build.runtime.weights import DTYPES
from kolm_build.steps._weights import Weight


def weight_of(name: str, tensor: torch.Tensor) -> Weight:
    """`tensor` as a weight to write."""
    return Weight(
        name=name,
        dtype=DTYPE_NAMES[tensor.dtype],
        shape=tuple(tensor.shape),
        read=lambda: payload(tensor),
    )


def tensor_of(weight: Weight) -> torch.Tensor:
    """The tensor of a weight; a copy, because torch has no read-only tensors."""
    data = bytearray(weight.read())
    return torch.frombuffer(data, dtype=DTYPES[weight.dtype]).reshape(weight.shape)


def changed(weight: Weight, change: Callable[[torch.Tensor], torch.Tensor]) -> Weight:
    """`weight` with `change` applied when it is written; dtype and shape stay."""
    return replace(weight, read=lambda: payload(change(tensor_of(weight))))
