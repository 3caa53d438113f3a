"""Weights as codes and scales, rounded to nearest, packed and unpacked (spec/quantization.md).

Simple case first: ``nearest(weight, scales(weight, grid))`` are the codes of a matrix,
``values`` what they stand for, ``pack`` the tensors that a file holds of them. Everything is exact
or one IEEE operation an element, in operations that `portable-1` certifies, so the bits are the
same on every machine and with any number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from kolm_build.core.quantisation import CHANNEL, WORD_BITS, Format, Grid, words
from kolm_build.errors import InvalidRecordError
from kolm_build.numerics import small_floats
from kolm_build.numerics.small_floats import E2M1, E4M3

LEAST_SCALE = 2.0**-23
"""The scale of integers or E4M3 where all of a group is 0 (QUANT-5)."""

_LEAST_E4M3 = 0x20  # 0.125


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """What the codes of a matrix are multiplied by.

    Attributes:
        grid: What the matrix is rounded to.
        scale: [rows, groups], as stored: a floating dtype for integers and ``fp8``; uint8 codes of
            E4M3 for ``nvfp4``, of E8M0 for ``mxfp4``.
        zero_point: [rows, groups], int8, of an asymmetric grid.
        global_scale: [1], float32, of ``nvfp4``: what the scales were multiplied by.
    """

    grid: Grid
    scale: torch.Tensor
    zero_point: torch.Tensor | None = None
    global_scale: torch.Tensor | None = None

    def steps(self) -> torch.Tensor:
        """What a code is multiplied by: [rows, groups], float32 (QUANT-6)."""
        if self.grid.kind == "mxfp4":
            return small_floats.from_e8m0(self.scale)
        if self.global_scale is None:
            return self.scale.float()
        return small_floats.decode(self.scale, E4M3) / self.global_scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """A matrix as codes and scales.

    Attributes:
        codes: [rows, columns]: int8 integers; uint8 codes of E4M3 for ``fp8``, of E2M1 (0 to 15)
            for ``nvfp4`` and ``mxfp4``.
        scales: What they are multiplied by.
    """

    codes: torch.Tensor
    scales: Scales

    @property
    def grid(self) -> Grid:
        """What the matrix is rounded to."""
        return self.scales.grid

    @property
    def scale(self) -> torch.Tensor:
        """The scales as stored, [rows, groups]."""
        return self.scales.scale

    @property
    def zero_point(self) -> torch.Tensor | None:
        """The zero points, [rows, groups], int8; None for a symmetric grid."""
        return self.scales.zero_point

    @property
    def global_scale(self) -> torch.Tensor | None:
        """The scale of the scales, [1], float32; None where the grid has none."""
        return self.scales.global_scale


def scales(
    weight: torch.Tensor,
    grid: Grid,
    *,
    dtype: torch.dtype = torch.float32,
    global_scale: torch.Tensor | None = None,
) -> Scales:
    """The scales of `weight` from the extremes of its groups (QUANT-4, QUANT-5).

    Args:
        weight: [rows, columns], float32, finite.
        grid: What it is to be rounded to.
        dtype: What a scale of integers or E4M3 is stored in: rounded once, before a code is made.
        global_scale: The scale that ``nvfp4`` layers share (`global_scale`); the matrix's own
            where None.

    Raises:
        InvalidRecordError: The group does not divide the columns.
    """
    groups = _grouped(weight, grid)
    if grid.kind == "nvfp4":
        shared = global_scale_of([weight]) if global_scale is None else global_scale
        return Scales(grid=grid, scale=_nvfp4_scale(groups, shared), global_scale=shared)
    if grid.kind == "mxfp4":
        return Scales(grid=grid, scale=small_floats.to_e8m0(_magnitude(groups)))
    if grid.symmetric:
        highest = 448.0 if grid.kind == "fp8" else 2.0 ** (grid.bits - 1) - 0.5
        return Scales(grid=grid, scale=_stored(_magnitude(groups) / highest, dtype))
    return _asymmetric(groups, grid, dtype)


def global_scale_of(weights: Iterable[torch.Tensor]) -> torch.Tensor:
    """The one global scale of ``nvfp4`` matrices that are run as one: [1], float32 (QUANT-7).

    The reciprocal of the largest magnitude of all, times 448 · 6; 1 where that is not finite.
    """
    largest = torch.stack([weight.abs().amax() for weight in weights]).amax().reshape(1)
    shared = largest.reciprocal() * (448.0 * 6.0)
    return torch.where(torch.isfinite(shared), shared, torch.ones_like(shared))


def nearest(weight: torch.Tensor, chosen: Scales) -> Quantised:
    """The codes nearest to `weight`, [rows, columns], float32 (QUANT-8)."""
    grid = chosen.grid
    zero = None if chosen.zero_point is None else chosen.zero_point.unsqueeze(-1)
    codes = encode(_grouped(weight, grid), chosen.steps().unsqueeze(-1), zero, grid)
    return Quantised(codes=codes.reshape(weight.shape), scales=chosen)


def values(matrix: Quantised) -> torch.Tensor:
    """What the codes stand for: [rows, columns], float32, one rounding an element (QUANT-6)."""
    chosen, grid = matrix.scales, matrix.grid
    zero = None if chosen.zero_point is None else chosen.zero_point.unsqueeze(-1)
    found = decode(_grouped(matrix.codes, grid), chosen.steps().unsqueeze(-1), zero, grid)
    return found.reshape(matrix.codes.shape)


def part(matrix: Quantised, rows: slice) -> Quantised:
    """The `rows` of `matrix`."""
    chosen = matrix.scales
    zero = None if chosen.zero_point is None else chosen.zero_point[rows]
    return Quantised(
        codes=matrix.codes[rows], scales=replace(chosen, scale=chosen.scale[rows], zero_point=zero)
    )


def joined(parts: Sequence[Quantised]) -> Quantised:
    """The matrix of all rows of `parts`, which have one grid and one global scale."""
    zeros = [one.zero_point for one in parts if one.zero_point is not None]
    scale = torch.cat([one.scale for one in parts])
    return Quantised(
        codes=torch.cat([one.codes for one in parts]),
        scales=replace(
            parts[0].scales, scale=scale, zero_point=torch.cat(zeros) if zeros else None
        ),
    )


def encode(
    numbers: torch.Tensor, steps: torch.Tensor, zero_point: torch.Tensor | None, grid: Grid
) -> torch.Tensor:
    """The codes nearest to `numbers`, any shape, float32.

    Args:
        numbers: What is rounded.
        steps: What a code is multiplied by, float32, of a shape that spreads over `numbers`.
        zero_point: The code of 0, int8, likewise; None for a symmetric grid.
        grid: What they are codes of.

    Returns:
        Int8 integers, or uint8 codes of E4M3 or E2M1.
    """
    shares = numbers / steps
    if grid.kind == "fp8":
        return small_floats.encode(shares, E4M3)
    if grid.kind != "int":
        return small_floats.encode(shares, E2M1)
    if zero_point is not None:
        shares = shares + zero_point.float()
    half = 2.0 ** (grid.bits - 1)
    return shares.clamp(-half, half - 1).round().to(torch.int8)


def decode(
    codes: torch.Tensor, steps: torch.Tensor, zero_point: torch.Tensor | None, grid: Grid
) -> torch.Tensor:
    """What `codes` stand for, float32: the exact product with `steps`, rounded once."""
    if grid.kind == "fp8":
        return small_floats.decode(codes, E4M3) * steps
    if grid.kind != "int":
        return small_floats.decode(codes, E2M1) * steps
    whole = codes.float()  # a difference of two codes is exact
    return (whole if zero_point is None else whole - zero_point.float()) * steps


def pack(matrix: Quantised, form: Format) -> dict[str, torch.Tensor]:
    """The tensors that a file holds of `matrix`, by the last part of their names (QUANT-20)."""
    codes, grid = matrix.codes, matrix.grid
    if form in ("int-quantized", "float-quantized"):
        plain = codes if grid.kind == "int" else codes.view(torch.float8_e4m3fn)
        return {"weight": plain, "weight_scale": matrix.scale}
    if form == "pack-quantized":
        table = {
            "weight_packed": packed_words(codes, grid.bits),
            "weight_scale": matrix.scale,
            "weight_shape": torch.tensor(codes.shape, dtype=torch.int64),
        }
        if matrix.zero_point is not None:
            across = packed_words(matrix.zero_point.t().contiguous(), grid.bits)
            table["weight_zero_point"] = across.t().contiguous()
        return table
    if matrix.global_scale is None:
        return {"weight_packed": packed_nibbles(codes), "weight_scale": matrix.scale}
    return {
        "weight_global_scale": matrix.global_scale,
        "weight_packed": packed_nibbles(codes),
        "weight_scale": matrix.scale.view(torch.float8_e4m3fn),
    }


def unpack(
    tensors: Mapping[str, torch.Tensor], grid: Grid, form: Format, shape: tuple[int, int]
) -> Quantised:
    """The matrix of `shape` that a file holds as `tensors`, by the last part of their names.

    Raises:
        InvalidRecordError: ``weight_shape`` is not `shape`.
    """
    rows, columns = shape
    if "weight_shape" in tensors and tensors["weight_shape"].tolist() != list(shape):
        raise InvalidRecordError(
            "a quantised layer has another shape than its model",
            where="weight_shape",
            expected=str(list(shape)),
            actual=str(tensors["weight_shape"].tolist()),
        )
    zero = tensors.get("weight_zero_point")
    if zero is not None:
        zero = unpacked_words(zero.t().contiguous(), grid.bits, rows).t().contiguous()
    scale = tensors["weight_scale"]
    chosen = Scales(
        grid=grid,
        scale=scale.view(torch.uint8) if scale.dtype == torch.float8_e4m3fn else scale,
        zero_point=zero,
        global_scale=tensors.get("weight_global_scale"),
    )
    if form in ("int-quantized", "float-quantized"):
        stored = tensors["weight"]
        codes = stored if grid.kind == "int" else stored.view(torch.uint8)
    elif form == "pack-quantized":
        codes = unpacked_words(tensors["weight_packed"], grid.bits, columns)
    else:
        codes = unpacked_nibbles(tensors["weight_packed"])
    return Quantised(codes=codes, scales=chosen)


def packed_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Signed codes [rows, n] of `bits` bits as int32 [rows, words(n, bits)] (QUANT-21).

    Each is raised by half its range; the lowest bits of a word hold the first code; what is left
    of a row's last word is 0.
    """
    count = codes.shape[1]
    raised = (codes.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)
    missing = words(count, bits) * WORD_BITS // bits - count
    if missing:
        raised = torch.nn.functional.pad(raised, (0, missing))
    return (packed_nibbles(raised) if bits == 4 else raised).contiguous().view(torch.int32)


def unpacked_words(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The int8 codes [rows, count] in `packed`, int32 [rows, words]."""
    octets = packed.contiguous().view(torch.uint8)
    raised = (unpacked_nibbles(octets) if bits == 4 else octets)[:, :count]
    return (raised.to(torch.int16) - (1 << (bits - 1))).to(torch.int8)


def packed_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Codes 0 to 15, uint8 [rows, n], two a byte: the even column in the low half (QUANT-22)."""
    pairs = codes.reshape(codes.shape[0], -1, 2)
    return pairs[:, :, 0] | torch.bitwise_left_shift(pairs[:, :, 1], 4)


def unpacked_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The codes 0 to 15, uint8 [rows, 2 n], in the bytes `packed`, [rows, n]."""
    high = torch.bitwise_right_shift(packed, 4)
    return torch.stack((packed & 15, high), dim=-1).reshape(packed.shape[0], -1)


def _grouped(matrix: torch.Tensor, grid: Grid) -> torch.Tensor:
    """`matrix` as [rows, groups, columns of a group]."""
    rows, columns = matrix.shape
    groups = grid.groups(columns)
    return matrix.reshape(rows, groups, columns if grid.group == CHANNEL else grid.group)


def _magnitude(groups: torch.Tensor) -> torch.Tensor:
    return groups.abs().amax(dim=-1)


def _stored(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`scale` in `dtype`, never 0: what is 0, or becomes it, is the least scale."""
    rounded = scale.to(dtype)
    return torch.where(rounded == 0, torch.full_like(rounded, LEAST_SCALE), rounded)


def _nvfp4_scale(groups: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    codes = small_floats.encode(shared * (_magnitude(groups) / 6.0), E4M3)
    return torch.where(codes == 0, torch.full_like(codes, _LEAST_E4M3), codes)


def _asymmetric(groups: torch.Tensor, grid: Grid, dtype: torch.dtype) -> Scales:
    """Scales and zero points: the range of a group, stretched to hold 0, over all the codes."""
    least = groups.amin(dim=-1).clamp(max=0.0)
    most = groups.amax(dim=-1).clamp(min=0.0)
    scale = _stored((most - least) / (2.0**grid.bits - 1), dtype)
    half = 2.0 ** (grid.bits - 1)
    zero = (-half - least / scale.float()).clamp(-half, half - 1).round()
    zero = torch.where(most == least, torch.zeros_like(zero), zero)  # a group of zeros
    return Scales(grid=grid, scale=scale, zero_point=zero.to(torch.int8))
