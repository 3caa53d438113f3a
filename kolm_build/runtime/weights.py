"""Tensors mapped into memory where they lie: in a safetensors file, alone or inside an artifact."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from kolm_build.core.safetensors import Header, TensorEntry
from kolm_build.errors import InvalidRecordError
from kolm_build.numerics.state import DTYPE_NAMES
from kolm_build.runtime.mapped import map_file

DTYPES: Mapping[str, torch.dtype] = {name: dtype for dtype, name in DTYPE_NAMES.items()}
"""The dtypes this project computes with, by their safetensors name."""

COMPUTE_DTYPES: Mapping[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
"""The dtypes a recipe may name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The tensors of one safetensors file.

    Attributes:
        header: What the file says of them.
        tensors: By name, in the order of the file. They share the file's pages; writing to one
            copies its page and never reaches the file.
    """

    header: Header
    tensors: Mapping[str, torch.Tensor]


def map_weights(path: Path, *, offset: int = 0, size: int | None = None) -> Weights:
    """The tensors of the `size` bytes at `offset` of `path`; the whole file where not said.

    Raises:
        InvalidRecordError: It is not a strict safetensors file, or a dtype cannot be used here.
    """
    file = map_file(path, offset=offset, size=size)
    try:
        tensors = {
            entry.name: _view(file.pages, file.data_start, entry) for entry in file.header.tensors
        }
    except InvalidRecordError as error:
        raise error.in_file(str(path)) from None
    return Weights(header=file.header, tensors=tensors)


def _view(pages: mmap.mmap, start: int, entry: TensorEntry) -> torch.Tensor:
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        raise InvalidRecordError(
            "a dtype that cannot be computed with",
            where=entry.name,
            expected=", ".join(DTYPES),
            actual=entry.dtype,
        )
    count = prod(entry.shape)
    if count == 0:
        return torch.empty(entry.shape, dtype=dtype)
    flat = torch.frombuffer(pages, dtype=dtype, count=count, offset=start + entry.begin)
    return flat.reshape(entry.shape)


def stored_dtype(tensors: Mapping[str, torch.Tensor]) -> torch.dtype:
    """The first floating dtype of a model; a canonical model has one."""
    found = (tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    return next(found, torch.float32)


def named_dtype(source: str, settings: Mapping[str, object]) -> torch.dtype:
    """The dtype that config.json names: that of the model before it was quantised.

    Args:
        source: The folder or artifact, as the user named it.
        settings: What config.json says.

    Raises:
        InvalidRecordError: It names none that is computed in.
    """
    names = {str(dtype).removeprefix("torch."): dtype for dtype in COMPUTE_DTYPES.values()}
    found = settings.get("dtype", settings.get("torch_dtype"))
    if not isinstance(found, str) or found not in names:
        raise InvalidRecordError(
            "a quantised model must say its dtype",
            file=source,
            where="config.json: dtype",
            expected=", ".join(names),
            actual=repr(found),
        )
    return names[found]
