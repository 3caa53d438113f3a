"""Codes, scales and packings; compressed-tensors is the oracle in both directions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kolm_build.core.numerics import Numerics
from kolm_build.core.quantisation import GROUPS, SCHEMES, format_of, group_for, stored_tensors
from kolm_build.core.quantisation_config import grouped, to_config
from kolm_build.core.request import Circumstances
from kolm_build.errors import InvalidRecordError
from kolm_build.numerics import small_floats
from kolm_build.numerics.apply import applied
from kolm_build.numerics.kernels import LIBRARY
from kolm_build.numerics.quantised import (
    global_scale_of,
    joined,
    nearest,
    pack,
    packed_words,
    part,
    scales,
    unpack,
    unpacked_words,
    values,
)
from kolm_build.numerics.small_floats import E2M1, E4M3
from kolm_build.numerics.state import DTYPE_NAMES

SHAPE = (24, 256)
WEIGHT_ONLY = [name for name, scheme in SCHEMES.items() if scheme.activations != "static"]
INTEGERS = ["w8a16", "w8a8", "w4a16", "w4a16-asym", "w4a8", "fp8"]
pytestmark = pytest.mark.filterwarnings("ignore")


def weight(seed=0, *, shape=SHAPE, dtype=torch.float32):
    """Numbers of many sizes, with groups of zeros, of one sign, and with an outlier; float32."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=generator)
    numbers *= torch.exp2(torch.randint(-9, 3, (shape[0], 1), generator=generator).float())
    numbers[0, :128] = 0
    numbers[1] = numbers[1].abs()
    numbers[2] = -numbers[2].abs()
    numbers[3, 5] = 40
    return numbers.to(dtype).float()


def chosen(name, numbers, **settings):
    scheme = SCHEMES[name]
    grid = scheme.grid(numbers.shape[1])
    return nearest(numbers, scales(numbers, grid, **settings)), format_of(grid, scheme.activations)


# ------------------------------------------------------------------------------------- the oracle


def oracle(name, columns, *, form=None):
    """compressed-tensors' scheme for the scheme `name`, as our config.json describes it."""
    from compressed_tensors.quantization import QuantizationConfig

    scheme = SCHEMES[name]
    grid = scheme.grid(columns)
    layer = ("layer", grid, form or format_of(grid, scheme.activations), scheme.activations)
    config = QuantizationConfig.model_validate(to_config(grouped([layer])))
    return config.config_groups["group_0"]


def their_scales(numbers, args, shared):
    """Scale and zero point as compressed-tensors computes them from extremes."""
    from compressed_tensors.quantization.utils import calculate_qparams

    groups = numbers.reshape(len(numbers), -1, args.group_size or numbers.shape[1])
    return calculate_qparams(groups.amin(-1), groups.amax(-1), args, global_scale=shared)


def their_compressor(form):
    from compressed_tensors.compressors import BaseCompressor

    return BaseCompressor.get_value_from_registry(form)


def their_tensors(name, numbers):
    """What compressed-tensors stores of `numbers`, rounded to nearest."""
    from compressed_tensors.quantization.utils import generate_gparam

    scheme = oracle(name, numbers.shape[1])
    args = scheme.weights
    shared = generate_gparam(numbers.min(), numbers.max()) if "nvfp4" in name else None
    scale, zero = their_scales(numbers, args, shared)
    state = {"weight": numbers, "weight_scale": scale, "weight_zero_point": zero}
    if shared is not None:
        state["weight_global_scale"] = shared
    return their_compressor(scheme.format).compress(state, scheme)


def their_values(name, packed):
    """What compressed-tensors makes of the tensors `packed`."""
    scheme = oracle(name, SHAPE[1])
    return their_compressor(scheme.format).decompress(dict(packed), scheme)["weight"]


@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_what_is_stored_has_compressed_tensors_bytes(name):
    """QUANT-4, QUANT-5, QUANT-7, QUANT-8, QUANT-20 to QUANT-22: the same tensors, bit for bit."""
    numbers = weight()
    theirs = their_tensors(name, numbers)
    ours = pack(*chosen(name, numbers))
    assert ours.keys() == theirs.keys()
    for part_name, tensor in ours.items():
        other = theirs[part_name]
        assert tensor.dtype == other.dtype, part_name
        assert torch.equal(tensor.view(torch.uint8), other.contiguous().view(torch.uint8)), (
            part_name
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", INTEGERS)
def test_compressed_tensors_reads_the_same_numbers(name, dtype):
    """QUANT-6: with scales in float32 the same bits; with narrower ones rounded once to them."""
    matrix, form = chosen(name, weight(), dtype=dtype)
    theirs = their_values(name, pack(matrix, form))
    assert theirs.dtype == dtype
    assert torch.equal(theirs, values(matrix).to(dtype))


@pytest.mark.parametrize("name", ["nvfp4a16", "mxfp4"])
def test_compressed_tensors_reads_fp4_as_bfloat16(name):
    """QUANT-6, QUANT-23: our numbers, rounded once."""
    matrix, form = chosen(name, weight())
    theirs = their_values(name, pack(matrix, form))
    assert torch.equal(theirs, values(matrix).bfloat16())


@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_what_compressed_tensors_stored_is_read_as_its_numbers(name):
    numbers = weight(3)
    scheme = SCHEMES[name]
    grid = scheme.grid(SHAPE[1])
    form = format_of(grid, scheme.activations)
    theirs = their_tensors(name, numbers)
    matrix = unpack({key: one.contiguous() for key, one in theirs.items()}, grid, form, SHAPE)
    found = values(matrix)
    assert torch.equal(found.to(their_values(name, theirs).dtype), their_values(name, theirs))


# --------------------------------------------------------------------------------------- own laws


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_packing_loses_nothing(name, dtype):
    numbers = weight(5)
    matrix, form = chosen(name, numbers, dtype=dtype)
    packed = pack(matrix, form)
    back = unpack(packed, matrix.grid, form, SHAPE)
    assert torch.equal(back.codes, matrix.codes)
    assert torch.equal(values(back), values(matrix))
    plan = stored_tensors(matrix.grid, form, SHAPE, scale_dtype=DTYPE_NAMES[dtype])
    found = {key: (DTYPE_NAMES[one.dtype], tuple(one.shape)) for key, one in packed.items()}
    assert found == {key: (one.dtype, one.shape) for key, one in plan.items()}


@given(st.data())
@settings(max_examples=60)
def test_any_codes_survive_packing(data):
    """QUANT-21, with lengths that leave a word half empty."""
    bits = data.draw(st.sampled_from([4, 8]))
    rows, count = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 40))
    half = 1 << (bits - 1)
    codes = data.draw(
        st.lists(st.integers(-half, half - 1), min_size=rows * count, max_size=rows * count)
    )
    tensor = torch.tensor(codes, dtype=torch.int8).reshape(rows, count)
    packed = packed_words(tensor, bits)
    assert packed.shape == (rows, -(-count * bits // 32))
    assert torch.equal(unpacked_words(packed, bits, count), tensor)
    for row in range(rows):  # the sentence of the rule itself
        words = [word % (1 << 32) for word in packed[row].tolist()]
        for at in range(count):
            field = words[at * bits // 32] >> (at * bits % 32) & (2 * half - 1)
            assert field - half == tensor[row, at]


@given(st.integers(0, 2**31), st.sampled_from(WEIGHT_ONLY), st.booleans())
@settings(max_examples=60)
def test_no_element_is_off_by_more_than_half_a_step(seed, name, narrow):
    """QUANT-8: half the distance of the codes around it; what is beyond the last code, likewise.

    A scale that is rounded to bfloat16 may move the last code by 2^-8 of itself, and a division
    by 2^-23.
    """
    numbers = weight(seed, shape=(8, 128))
    matrix, _ = chosen(name, numbers, dtype=torch.bfloat16 if narrow else torch.float32)
    grid = matrix.grid
    steps = matrix.scales.steps().repeat_interleave(128 // matrix.scales.steps().shape[1], dim=1)
    share = (numbers / steps).abs()
    if grid.kind == "int":
        gap = torch.ones_like(share)
    else:
        form = E4M3 if grid.kind == "fp8" else E2M1
        least = 2.0 ** (1 - form.bias)
        gap = torch.exp2(torch.floor(torch.log2(share.clamp(least, form.largest)))) / (
            1 << form.mantissa
        )
    off = (values(matrix) - numbers).abs()
    last = {"int": 2.0 ** (grid.bits - 1), "fp8": 448.0}.get(grid.kind, 6.0)
    allowed = gap / 2 * (1 + 2**-20) + last * (2**-8 if narrow else 2**-20)
    if grid.kind == "nvfp4":  # a scale in E4M3 is off by 1/16 at most
        allowed += torch.where(share > 6, share - 6, torch.zeros_like(share))
        assert (share.max() <= 6 * (1 + 1 / 14)) or (matrix.scale == 0x7E).any()
    if grid.kind == "mxfp4":  # from 6 to 7 of its steps is beyond the last code
        assert share.max() <= 7
        allowed += torch.where(share > 6, share - 6, torch.zeros_like(share))
    assert (off <= steps * allowed).all()


@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_what_lies_on_the_grid_keeps_its_codes(name):
    matrix, _ = chosen(name, weight(7))
    again = nearest(values(matrix), matrix.scales)
    assert torch.equal(values(again), values(matrix))


@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_rows_may_be_rounded_one_after_another(name):
    numbers = weight(9)
    grid = SCHEMES[name].grid(SHAPE[1])
    shared = global_scale_of([numbers]) if grid.kind == "nvfp4" else None
    whole = nearest(numbers, scales(numbers, grid, global_scale=shared))
    parts = [
        nearest(numbers[rows], scales(numbers[rows], grid, global_scale=shared))
        for rows in (slice(0, 7), slice(7, 24))
    ]
    assert torch.equal(values(joined(parts)), values(whole))
    assert torch.equal(values(part(whole, slice(3, 9))), values(whole)[3:9])


def test_e4m3_is_rounded_as_pytorch_rounds_it():
    """QUANT-9: every number between two codes, every tie, both signs, what is too large."""
    codes = torch.arange(256, dtype=torch.uint8)
    reals = codes.view(torch.float8_e4m3fn).float()
    known = reals[small_floats.is_number(codes)]
    middles = (known[:-1] + known[1:]) / 2
    near = [torch.nextafter(middles, torch.full_like(middles, way)) for way in (-1e9, 1e9)]
    numbers = torch.cat([known, middles, *near, torch.tensor([1e-30, -1e-30, -0.0, 460, 1e30])])
    wanted = numbers.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    assert torch.equal(small_floats.encode(numbers, E4M3), wanted)
    found = small_floats.decode(codes, E4M3)
    assert torch.equal(found[small_floats.is_number(codes)], known)


def test_ties_of_e2m1_go_to_the_even_code():
    """QUANT-9."""
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0])
    wanted = torch.tensor([0, 2, 2, 4, 4, 6, 6, 7], dtype=torch.uint8)
    assert torch.equal(small_floats.encode(ties, E2M1), wanted)
    assert torch.equal(small_floats.encode(-ties, E2M1), wanted + 8)
    assert small_floats.encode(torch.tensor([-0.0, -0.1]), E2M1).tolist() == [0, 8]


def test_the_group_is_the_largest_that_divides():
    """QUANT-2."""
    assert [group_for(columns) for columns in (1536, 576, 96, 128)] == [128, 64, 32, 128]
    with pytest.raises(InvalidRecordError, match="no group divides"):
        group_for(80)
    with pytest.raises(InvalidRecordError, match="does not divide"):
        SCHEMES["w4a16"].grid(576, group=128)
    assert SCHEMES["w4a16"].grid(576, group=32).group == 32


def test_the_schemes_are_those_of_the_specification():
    """QUANT-1, QUANT-3."""
    from tests.support.models import ROOT

    page = (ROOT / "spec/quantization.md").read_text()
    section = page.partition("## Schemes")[2].partition("## Numbers")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| `")]
    assert {row[1].strip(" `"): row[5].strip(" `") for row in rows} == {
        name: format_of(scheme.weights, scheme.activations) for name, scheme in SCHEMES.items()
    }
    assert all(scheme.weights.bits >= 3 for scheme in SCHEMES.values())
    assert {scheme.weights.group for scheme in SCHEMES.values() if scheme.is_grouped} == {GROUPS[0]}


def test_every_operation_is_certified_and_gives_the_same_bits():
    """QUANT-50: under the guard of portable-1, with one thread and two."""
    numbers = weight(11)
    for name in WEIGHT_ONLY:
        plain = values(chosen(name, numbers)[0])
        for threads in (1, 2):
            numerics = Numerics(cls="portable-1", seed=0, threads=1)
            with applied(numerics, Circumstances(kernels=str(LIBRARY), threads=threads)):
                matrix, form = chosen(name, numbers)
                back = unpack(pack(matrix, form), matrix.grid, form, SHAPE)
                found = values(back)
            assert torch.equal(found, plain), name
