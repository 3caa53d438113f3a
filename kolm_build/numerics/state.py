"""Digests of a training's state: its tensors and torch's generator (spec/trace.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from blake3 import blake3

from kolm_build.core.digest import Digest, RecordKind
from kolm_build.core.safetensors import weights_record

DTYPE_NAMES: Mapping[torch.dtype, str] = {
    torch.bfloat16: "BF16",
    torch.bool: "BOOL",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.int8: "I8",
    torch.uint8: "U8",
}
"""Torch's dtypes by their safetensors names."""


def payload(tensor: torch.Tensor) -> memoryview:
    """The bytes of `tensor`, slowest dimension first, little-endian."""
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(plain.view(torch.uint8).numpy()) if plain.numel() else memoryview(b"")


def tensors_digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> Digest:
    """The weights id of named tensors: names, dtypes, shapes and bytes, in any order."""
    rows = (
        (name, DTYPE_NAMES[one.dtype], tuple(one.shape), blake3(payload(one)).digest())
        for name, one in tensors
    )
    return Digest.of_record(weights_record(rows), RecordKind.WEIGHTS)


def optimiser_digest(optimiser: torch.optim.Optimizer, names: Mapping[torch.Tensor, str]) -> Digest:
    """The weights id of an optimiser's state.

    Args:
        optimiser: The optimiser; every value of its state is a tensor.
        names: Name of each parameter that it has a state for.

    Returns:
        The digest over tensors called ``exp_avg/<parameter>`` and so on.
    """
    return tensors_digest(
        (f"{part}/{names[parameter]}", value)
        for parameter, state in optimiser.state.items()
        for part, value in state.items()
    )


def generator_digest() -> Digest:
    """The digest of the state of torch's default CPU generator."""
    return Digest.of_blob(bytes(payload(torch.get_rng_state())))
