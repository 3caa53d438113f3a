"""Every E2M1, E4M3 and E8M0 code, and small matrices of every scheme as a file holds them.

Weights are written as the bits of binary32; values are those that the stored tensors stand for.
"""

import struct
from collections.abc import Mapping
from fractions import Fraction

import torch

from kolm_build.core.quantisation import SCHEMES, e2m1, e4m3, e8m0, format_of
from kolm_build.numerics.quantised import nearest, pack, scales, values
from kolm_build.numerics.state import DTYPE_NAMES, payload

ROWS = 3
COLUMNS = 128
_ZEROS = 32  # the first columns of the last row: a group of nothing but zeros


def _text(number: Fraction | None) -> str:
    """A code's number, exactly: a decimal, or a power of two."""
    if number is None:
        return "nan"
    return f"{number.numerator}/{number.denominator}"


def _weight() -> torch.Tensor:
    """A matrix with ties, zeros, both signs and sizes far apart; float32 from whole numbers."""
    whole = torch.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    numbers = ((whole * 7919 + 104729) % 2003 - 1001).float() / 512
    numbers[0, ::8] = numbers[0, ::8] * 8
    numbers[1] = torch.arange(COLUMNS).float() / 4 - 16  # every tie of E2M1 and INT4
    numbers[2, :_ZEROS] = 0
    return numbers


def _bits(tensor: torch.Tensor) -> list[list[str]]:
    return [[struct.pack(">f", number).hex() for number in row] for row in tensor.tolist()]


def _tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, object]:
    return {
        name: {
            "dtype": DTYPE_NAMES[one.dtype],
            "shape": list(one.shape),
            "bytes": bytes(payload(one)).hex(),
        }
        for name, one in sorted(tensors.items())
    }


def _scheme(name: str, weight: torch.Tensor, dtype: torch.dtype) -> dict[str, object]:
    scheme = SCHEMES[name]
    grid = scheme.grid(COLUMNS, group=32 if scheme.is_grouped else 0)
    matrix = nearest(weight, scales(weight, grid, dtype=dtype))
    form = format_of(grid, scheme.activations)
    return {
        "scheme": name,
        "bits": grid.bits,
        "columns_that_share_a_scale": grid.group or COLUMNS,
        "format": form,
        "scale_dtype": DTYPE_NAMES[dtype],
        "tensors": _tensors(pack(matrix, form)),
        "values": _bits(values(matrix)),
    }


def vectors() -> dict[str, object]:
    """Codes as exact fractions; matrices as stored, with the bits of what they stand for."""
    weight = _weight()
    names = [name for name, one in SCHEMES.items() if one.activations != "static"]
    return {
        "e2m1": [_text(e2m1(code)) for code in range(16)],
        "e4m3": [_text(e4m3(code)) for code in range(256)],
        "e8m0": [_text(e8m0(code)) for code in range(256)],
        "weight": _bits(weight),
        "matrices": [
            *(_scheme(name, weight, torch.float32) for name in names),
            *(_scheme(name, weight, torch.bfloat16) for name in ("w4a16", "w4a16-asym", "w8a8")),
        ],
    }
