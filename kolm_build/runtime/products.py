"""Products with quantised weights: on the portable kernels, and on stock ones.

The portable kernels make numbers of the codes block by block (spec/numerics.md, NUM-130 to 136).
The stock way, for `native-1`, makes a whole matrix of float32 of them, one layer at a time.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from kolm_build.core.quantisation import NVFP4
from kolm_build.core.quantisation_config import LayerGroup
from kolm_build.numerics.quantised import nearest, scales, unpack, values

Tensors = Mapping[str, torch.Tensor]
"""The tensors of a layer, by the last part of their names."""


def product(
    x: torch.Tensor, tensors: Tensors, group: LayerGroup, bias: torch.Tensor | None
) -> torch.Tensor:
    """What a quantised linear layer makes of `x`, on the portable kernels.

    Args:
        x: [..., columns], float32, bfloat16 or float16.
        tensors: The layer's.
        group: How its weight is stored, and what happens to `x`.
        bias: [rows]; None for none.

    Returns:
        [..., rows], in the dtype of `x`.

    Determinism:
        Bitwise in `portable-1`.
    """
    kernels, kind = torch.ops.kolm_portable, group.grid.kind
    if kind == "int":
        return _integers(x, tensors, group, bias)
    if kind == "fp8":
        return kernels.quantised_linear_fp8(x, tensors["weight"], tensors["weight_scale"], bias)
    packed, scale = tensors["weight_packed"], tensors["weight_scale"]
    if kind == "mxfp4":
        return kernels.quantised_linear_mxfp4(x, packed, scale, bias)
    shared = tensors["weight_global_scale"]
    if not group.activations:
        return kernels.quantised_linear_nvfp4(x, packed, scale, shared, bias)
    seen = rounded(x, tensors["input_global_scale"])
    return kernels.quantised_linear_nvfp4(seen, packed, scale, shared, bias).to(x.dtype)


def _integers(
    x: torch.Tensor, tensors: Tensors, group: LayerGroup, bias: torch.Tensor | None
) -> torch.Tensor:
    kernels, grid = torch.ops.kolm_portable, group.grid
    codes = tensors["weight"] if "weight" in tensors else tensors["weight_packed"]
    zero_point = tensors.get("weight_zero_point")
    weight = codes, tensors["weight_scale"], zero_point, grid.bits, grid.group
    if not group.activations:
        return kernels.quantised_linear_int(x, *weight, bias)
    return kernels.quantised_linear_int_dynamic(x, *weight, bias, _input_scale(tensors))


def _input_scale(tensors: Tensors) -> torch.Tensor | None:
    """The scale of what a layer reads, [1], float32; None where each row has its own."""
    found = tensors.get("input_scale")
    return None if found is None else found.float()


def rounded(x: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """`x` on the grid of NVFP4, under the global scale `shared`: float32 (GEN-47)."""
    rows = x.float().reshape(-1, x.shape[-1])
    return values(nearest(rows, scales(rows, NVFP4, global_scale=shared))).reshape(x.shape)


# ---------------------------------------------------------------------------------------- stock


def stock_product(
    x: torch.Tensor, tensors: Tensors, group: LayerGroup, bias: torch.Tensor | None
) -> torch.Tensor:
    """As `product`, on whichever kernels torch has; the bits are theirs."""
    wide = None if bias is None else bias.float()
    matrix = unpack(tensors, group.grid, group.form, (len(tensors["weight_scale"]), x.shape[-1]))
    if not group.activations:
        return functional.linear(x.float(), values(matrix), wide).to(x.dtype)
    if group.grid.kind == "nvfp4":
        seen = rounded(x, tensors["input_global_scale"])
        return functional.linear(seen, values(matrix), wide).to(x.dtype)
    codes, steps = _integer_rows(x, _input_scale(tensors))
    # Binary64 holds every product of codes and every sum of them exactly.
    width = group.grid.group or x.shape[-1]
    total = torch.zeros(*x.shape[:-1], len(matrix.codes), dtype=torch.float64)
    for at in range(0, x.shape[-1], width):
        dots = codes[..., at : at + width] @ matrix.codes[:, at : at + width].double().t()
        total += dots * (steps * matrix.scale[:, at // width].float()).double()
    return (total.float() if wide is None else total.float() + wide).to(x.dtype)


def _integer_rows(x: torch.Tensor, scale: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The integers of each row of `x`, in binary64, and its scale, [..., 1], float32 (NUM-132)."""
    wide = x.float()
    steps = wide.abs().amax(dim=-1, keepdim=True) / 127 if scale is None else scale
    codes = (wide / steps).clamp(-127, 127).round()
    return torch.where(steps == 0, torch.zeros_like(codes), codes).double(), steps
