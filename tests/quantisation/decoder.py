"""A second reader of quantised tensors, from spec/quantization.md alone: exact, slow, no torch."""

from __future__ import annotations

import struct
from fractions import Fraction

FORMATS = {"F32": (8, 23, 4), "BF16": (8, 7, 2), "F16": (5, 10, 2), "F8_E4M3": (4, 3, 1)}


def real(code: int, exponent_bits: int, mantissa_bits: int) -> Fraction:
    """The number of a sign, an exponent and a mantissa."""
    mantissa = code % 2**mantissa_bits
    exponent = code // 2**mantissa_bits % 2**exponent_bits
    sign = -1 if code // 2 ** (mantissa_bits + exponent_bits) else 1
    bias = 2 ** (exponent_bits - 1) - 1
    whole = mantissa + (2**mantissa_bits if exponent else 0)
    return sign * whole * Fraction(2) ** (max(exponent, 1) - bias - mantissa_bits)


def rounded(number: Fraction) -> Fraction:
    """`number` as the nearest binary32 number, half to even."""
    top = number.numerator.bit_length() - number.denominator.bit_length()
    quantum = Fraction(2) ** (max(top, -126) - 24)
    for one in (quantum, quantum * 2):  # the exponent is `top` or one below
        whole = round(number / one)  # half to even
        if abs(whole) <= 2**24:
            return whole * one
    raise AssertionError(number)


def numbers(tensor: dict, dtype: str | None = None) -> list[Fraction]:
    """Every element of a tensor of floating-point numbers."""
    exponent, mantissa, size = FORMATS[dtype or tensor["dtype"]]
    data = bytes.fromhex(tensor["bytes"])
    words = (data[at : at + size] for at in range(0, len(data), size))
    return [real(int.from_bytes(word, "little"), exponent, mantissa) for word in words]


def integers(tensor: dict, bits: int, count: int, *, down: bool = False) -> list[list[int]]:
    """Packed integers, row by row, or column by column: `count` of each."""
    rows, width = tensor["shape"]
    words = struct.unpack(f"<{rows * width}I", bytes.fromhex(tensor["bytes"]))
    grid = [words[row * width : (row + 1) * width] for row in range(rows)]
    lines = list(zip(*grid, strict=True)) if down else grid
    half, each = 1 << (bits - 1), 32 // bits
    return [
        [(line[at // each] >> (at % each * bits)) % (1 << bits) - half for at in range(count)]
        for line in lines
    ]


def e2m1(tensor: dict) -> list[list[Fraction]]:
    """Packed E2M1 numbers, row by row."""
    rows, width = tensor["shape"]
    data = bytes.fromhex(tensor["bytes"])
    halves = [half for byte in data for half in (byte % 16, byte // 16)]
    return [
        [real(code, 2, 1) for code in halves[row * 2 * width : (row + 1) * 2 * width]]
        for row in range(rows)
    ]


def decoded(matrix: dict, rows: int, columns: int) -> list[list[Fraction]]:
    """The values of a matrix of the vectors: number times step, rounded once (QUANT-6)."""
    tensors, form, bits = matrix["tensors"], matrix["format"], matrix["bits"]
    groups = columns // matrix["columns_that_share_a_scale"]
    zeros = [[0] * rows for _ in range(groups)]
    if form == "pack-quantized":
        codes = integers(tensors["weight_packed"], bits, columns)
        if "weight_zero_point" in tensors:
            zeros = integers(tensors["weight_zero_point"], bits, rows, down=True)
    elif form == "int-quantized":
        data = struct.unpack(f"{rows * columns}b", bytes.fromhex(tensors["weight"]["bytes"]))
        codes = [data[row * columns : (row + 1) * columns] for row in range(rows)]
    elif form == "float-quantized":
        data = numbers(tensors["weight"])
        codes = [data[row * columns : (row + 1) * columns] for row in range(rows)]
    else:
        codes = e2m1(tensors["weight_packed"])
    steps = _steps(tensors, form)
    return [
        [
            rounded(
                (codes[row][at] - zeros[at * groups // columns][row])
                * steps[row * groups + at * groups // columns]
            )
            for at in range(columns)
        ]
        for row in range(rows)
    ]


def _steps(tensors: dict, form: str) -> list[Fraction]:
    if form == "mxfp4-pack-quantized":
        return [
            Fraction(2) ** (code - 127) for code in bytes.fromhex(tensors["weight_scale"]["bytes"])
        ]
    scale = numbers(tensors["weight_scale"])
    if form == "nvfp4-pack-quantized":
        (shared,) = numbers(tensors["weight_global_scale"])
        return [rounded(one / shared) for one in scale]
    return scale
