"""Which grids a weight may be rounded to, and the schemes that name them (spec/quantization.md).

A grid says what the codes of a matrix are and how many of its columns share a scale; a scheme is
what a recipe names: the grid of the linear layers' weights, and what happens to activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Literal

from kolm_build.errors import InvalidRecordError

Kind = Literal["fp8", "int", "mxfp4", "nvfp4"]
Activations = Literal["", "dynamic", "static"]
Format = Literal[
    "float-quantized",
    "int-quantized",
    "mxfp4-pack-quantized",
    "nvfp4-pack-quantized",
    "pack-quantized",
]
Shape = tuple[int, ...]

GROUPS = (128, 64, 32)
"""The sizes of a group of columns of INT4, the preferred one first (QUANT-2)."""

CHANNEL = 0
"""The group of a grid whose scale is shared by the whole row."""

WORD_BITS = 32
"""Bits of the words that integer codes are packed into."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The values that the elements of a matrix are rounded to.

    Attributes:
        kind: ``int``; ``fp8`` (E4M3); ``nvfp4`` (E2M1, a scale in E4M3, one of the tensor in
            binary32); ``mxfp4`` (E2M1, a scale in E8M0).
        bits: Bits of a code: 8 or 4.
        group: Columns that share a scale; `CHANNEL` for all of a row.
        symmetric: Whether the code 0 stands for 0; if not, a group has a zero point.
    """

    kind: Kind
    bits: int
    group: int = CHANNEL
    symmetric: bool = True

    def groups(self, columns: int) -> int:
        """The number of scales of a row of `columns`.

        Raises:
            InvalidRecordError: The group does not divide it.
        """
        if self.group == CHANNEL:
            return 1
        if columns % self.group:
            raise InvalidRecordError(
                "a group does not divide the columns of a layer",
                expected=f"a multiple of {self.group} columns",
                actual=f"{columns} columns",
                advice="Leave the group to the rule (0), or name the layer in `keep`.",
            )
        return columns // self.group


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """What a recipe names: how linear layers are stored and computed.

    Attributes:
        name: Its name.
        weights: The grid of a weight; where `is_grouped`, the group is chosen for each layer.
        is_grouped: Whether a layer's group follows from its columns (QUANT-2).
        activations: What happens to what a layer reads: nothing, or it is rounded too, with a
            scale made as it runs (``dynamic``) or from calibration (``static``).
    """

    name: str
    weights: Grid
    is_grouped: bool = False
    activations: Activations = ""

    def grid(self, columns: int, *, group: int = 0) -> Grid:
        """The grid of a layer of `columns`.

        Args:
            columns: The layer's inputs.
            group: The size of a group, for a scheme that has some; 0 for the rule.

        Raises:
            InvalidRecordError: No group, or not this one, divides the columns.
        """
        grid = self.weights
        if self.is_grouped:
            grid = replace(grid, group=group or group_for(columns))
        grid.groups(columns)
        return grid


INT8 = Grid(kind="int", bits=8)
INT4 = Grid(kind="int", bits=4, group=GROUPS[0])
INT4_ASYMMETRIC = replace(INT4, symmetric=False)
FP8 = Grid(kind="fp8", bits=8)
NVFP4 = Grid(kind="nvfp4", bits=4, group=16)
MXFP4 = Grid(kind="mxfp4", bits=4, group=32)

SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            Scheme(name="fp8", weights=FP8),
            Scheme(name="mxfp4", weights=MXFP4),
            Scheme(name="nvfp4", weights=NVFP4, activations="static"),
            Scheme(name="nvfp4a16", weights=NVFP4),
            Scheme(name="w4a16", weights=INT4, is_grouped=True),
            Scheme(name="w4a16-asym", weights=INT4_ASYMMETRIC, is_grouped=True),
            Scheme(name="w4a8", weights=INT4, is_grouped=True, activations="dynamic"),
            Scheme(name="w8a16", weights=INT8),
            Scheme(name="w8a8", weights=INT8, activations="dynamic"),
            Scheme(name="w8a8-static", weights=INT8, activations="static"),
        )
    }
)
"""Every scheme, by its name (QUANT-1)."""


def scheme_of(name: str) -> Scheme:
    """The scheme called `name`.

    Raises:
        InvalidRecordError: There is none.
    """
    if name not in SCHEMES:
        raise InvalidRecordError(
            "unknown scheme of quantisation",
            where="scheme",
            expected=", ".join(SCHEMES),
            actual=repr(name)[:80],
        )
    return SCHEMES[name]


def group_for(columns: int) -> int:
    """The largest group that divides `columns` (QUANT-2).

    Raises:
        InvalidRecordError: None does.
    """
    for group in GROUPS:
        if columns and columns % group == 0:
            return group
    raise InvalidRecordError(
        "no group divides the columns of a layer",
        expected="a multiple of " + ", ".join(map(str, GROUPS)),
        actual=f"{columns} columns",
        advice="Name the layer in `keep`, or use a scheme without groups such as w8a16.",
    )


def format_of(grid: Grid, activations: Activations) -> Format:
    """How compressed-tensors calls the storage of a layer's weight (QUANT-20)."""
    if grid.kind == "int":
        return "pack-quantized" if grid.bits == 4 or not activations else "int-quantized"
    if grid.kind == "fp8":
        return "float-quantized"
    return "nvfp4-pack-quantized" if grid.kind == "nvfp4" else "mxfp4-pack-quantized"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor that a quantised layer has in the file.

    Attributes:
        dtype: Its name in a safetensors header.
        shape: Its sizes.
    """

    dtype: str
    shape: Shape


def stored_tensors(
    grid: Grid, form: Format, shape: tuple[int, int], *, scale_dtype: str
) -> Mapping[str, Stored]:
    """The tensors that stand in place of a layer's ``weight`` (QUANT-20 to QUANT-25).

    Args:
        grid: The layer's grid.
        form: How it is stored.
        shape: Rows and columns of the weight.
        scale_dtype: The dtype of a scale that is a plain number: ``F32``, ``BF16`` or ``F16``.

    Returns:
        Dtype and shape by the last part of the tensor's name.

    Raises:
        InvalidRecordError: The group does not divide the columns.
    """
    rows, columns = shape
    scales = (rows, grid.groups(columns))
    if form == "pack-quantized":
        return _packed_integers(grid, shape, scales, scale_dtype)
    if form == "int-quantized":
        return {"weight": Stored(dtype="I8", shape=shape), "weight_scale": _of(scale_dtype, scales)}
    if form == "float-quantized":
        codes = Stored(dtype="F8_E4M3", shape=shape)
        return {"weight": codes, "weight_scale": _of(scale_dtype, scales)}
    packed = Stored(dtype="U8", shape=(rows, columns // 2))
    if form == "mxfp4-pack-quantized":
        return {"weight_packed": packed, "weight_scale": Stored(dtype="U8", shape=scales)}
    return {
        "weight_global_scale": Stored(dtype="F32", shape=(1,)),
        "weight_packed": packed,
        "weight_scale": Stored(dtype="F8_E4M3", shape=scales),
    }


def _packed_integers(
    grid: Grid, shape: tuple[int, int], scales: tuple[int, int], scale_dtype: str
) -> Mapping[str, Stored]:
    rows, columns = shape
    table = {
        "weight_packed": Stored(dtype="I32", shape=(rows, words(columns, grid.bits))),
        "weight_scale": _of(scale_dtype, scales),
        "weight_shape": Stored(dtype="I64", shape=(2,)),
    }
    if not grid.symmetric:
        packed = (words(rows, grid.bits), scales[1])
        table["weight_zero_point"] = Stored(dtype="I32", shape=packed)
    return table


def words(codes: int, bits: int) -> int:
    """How many words of 32 bits `codes` codes of `bits` bits fill."""
    return -(-codes * bits // WORD_BITS)


def _of(dtype: str, shape: Shape) -> Stored:
    return Stored(dtype=dtype, shape=shape)


def e2m1(code: int) -> Fraction:
    """The number that the E2M1 code `code`, 0 to 15, stands for; -0 is 0 (QUANT-10)."""
    return _small_float(code, exponent_bits=2, mantissa_bits=1)


def e4m3(code: int) -> Fraction | None:
    """The number of the E4M3 code `code`, 0 to 255; None for the two that are NaN (QUANT-11)."""
    return None if code & 0x7F == 0x7F else _small_float(code, exponent_bits=4, mantissa_bits=3)


def e8m0(code: int) -> Fraction | None:
    """The power of two of the E8M0 code `code`, 0 to 255; None for 255, NaN (QUANT-12)."""
    return None if code == 0xFF else Fraction(2) ** (code - 127)


def _small_float(code: int, *, exponent_bits: int, mantissa_bits: int) -> Fraction:
    mantissa = code & ((1 << mantissa_bits) - 1)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    bias = (1 << (exponent_bits - 1)) - 1
    whole = mantissa + ((1 << mantissa_bits) if exponent else 0)
    size = whole * Fraction(2) ** (max(exponent, 1) - bias - mantissa_bits)
    return -size if code >> (exponent_bits + mantissa_bits) else size
