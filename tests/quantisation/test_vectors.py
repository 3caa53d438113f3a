"""spec/vectors/quantization.json against a second reader, and against the product."""

from __future__ import annotations

import json
import struct
from fractions import Fraction

import pytest

from kolm_build.core.quantisation import e2m1, e4m3, e8m0
from tests.quantisation import decoder
from tests.support.models import ROOT

VECTORS = json.loads((ROOT / "spec/vectors/quantization.json").read_text())
MATRICES = [
    pytest.param(matrix, id=f"{matrix['scheme']}-{matrix['scale_dtype']}")
    for matrix in VECTORS["matrices"]
]


def exact(text):
    """A code's number; None for NaN."""
    return None if text == "nan" else Fraction(text)


def binary32(rows):
    """Numbers from the bits of binary32."""
    return [[Fraction(struct.unpack(">f", bytes.fromhex(word))[0]) for word in row] for row in rows]


def test_the_sixteen_e2m1_codes():
    """QUANT-10."""
    half = [Fraction(n, 2) for n in (0, 1, 2, 3, 4, 6, 8, 12)]
    assert [exact(text) for text in VECTORS["e2m1"]] == [*half, *(-one for one in half)]
    assert [e2m1(code) for code in range(16)] == [decoder.real(code, 2, 1) for code in range(16)]


def test_the_256_e4m3_codes():
    """QUANT-11."""
    found = [exact(text) for text in VECTORS["e4m3"]]
    assert [at for at, one in enumerate(found) if one is None] == [0x7F, 0xFF]
    for code, one in enumerate(found):
        assert one is None or one == decoder.real(code, 4, 3) == e4m3(code)
    assert max(one for one in found if one is not None) == 448


def test_the_256_e8m0_codes():
    """QUANT-12."""
    found = [exact(text) for text in VECTORS["e8m0"]]
    assert found == [*(Fraction(2) ** (code - 127) for code in range(255)), None]
    assert found == [e8m0(code) for code in range(256)]


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_second_reader_finds_the_values_of_every_format(matrix):
    """QUANT-6, QUANT-20, QUANT-21, QUANT-22, QUANT-23."""
    wanted = binary32(matrix["values"])
    assert decoder.decoded(matrix, len(wanted), len(wanted[0])) == wanted


@pytest.mark.parametrize("matrix", MATRICES)
def test_no_code_is_nearer_than_the_one_that_was_chosen(matrix):
    """QUANT-8: every other value that an element can have is as far from the weight or farther.

    What a share is rounded to before its code is chosen may hide a difference of a few ulps.
    """
    weights, values = binary32(VECTORS["weight"]), binary32(matrix["values"])
    columns, share = len(weights[0]), matrix["columns_that_share_a_scale"]
    for row, (some, found) in enumerate(zip(weights, values, strict=True)):
        for at in range(columns):
            steps = [
                found[other] for other in range(at // share * share, (at // share + 1) * share)
            ]
            off = abs(found[at] - some[at])
            assert all(
                off <= abs(other - some[at]) * (1 + Fraction(1, 2**20)) for other in steps
            ), (
                row,
                at,
            )
