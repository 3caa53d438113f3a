"""Integers, histograms, ranges and 8-bit formats: exact, and the same on every machine."""

import itertools
import json
import math
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.errors import UncertifiedOperatorError
from kolm_build.numerics import guard, portable

VECTORS = Path(__file__).parents[2] / "spec" / "vectors" / "numerics_formats.json"
TYPES = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]


@pytest.fixture(scope="module", autouse=True)
def guarded():
    with guard.activate():
        yield


def wrapped(value: int, dtype: torch.dtype) -> int:
    """`value` modulo 2^bits, in the type's range."""
    bits = 8 * dtype.itemsize
    low = value % 2**bits
    return low - 2**bits if dtype.is_signed and low >= 2 ** (bits - 1) else low


def ends(dtype: torch.dtype) -> list[int]:
    limits = torch.iinfo(dtype)
    values = {limits.min, limits.min + 1, -7, -1, 0, 1, 2, 7, limits.max - 1, limits.max}
    return sorted(value for value in values if limits.min <= value <= limits.max)


def pairs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pair of the type's special numbers, divisors without 0."""
    rows = [(a, b) for a in ends(dtype) for b in ends(dtype) if b != 0]
    return tuple(torch.tensor(column, dtype=dtype) for column in zip(*rows, strict=True))


def truncated(a: int, b: int) -> int:
    return math.trunc(Fraction(a, b))


QUOTIENTS = {
    "trunc": (lambda a, b: torch.div(a, b, rounding_mode="trunc"), truncated),
    "floor": (lambda a, b: torch.div(a, b, rounding_mode="floor"), lambda a, b: a // b),
    "floor_divide": (torch.floor_divide, lambda a, b: a // b),
    "remainder": (torch.remainder, lambda a, b: a % b),
    "fmod": (torch.fmod, lambda a, b: a - b * truncated(a, b)),
}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", QUOTIENTS)
def test_a_quotient_of_integers_is_what_arithmetic_says(name, dtype):
    """NUM-28: the least integer by -1 among them, which would end the process otherwise."""
    compute, wanted = QUOTIENTS[name]
    a, b = pairs(dtype)
    expected = [wrapped(wanted(x, y), dtype) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert compute(a, b).tolist() == expected
    assert compute(a.expand(3, -1).t(), b.expand(3, -1).t()).t()[1].tolist() == expected


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_in_place_and_with_an_output_a_quotient_is_the_same(dtype):
    """NUM-28."""
    a, b = pairs(dtype)
    for mode in ("trunc", "floor"):
        whole = torch.div(a, b, rounding_mode=mode)
        assert torch.equal(a.clone().div_(b, rounding_mode=mode), whole)
        assert torch.equal(torch.div(a, b, rounding_mode=mode, out=torch.empty_like(a)), whole)
    for name in ("floor_divide", "remainder", "fmod"):
        plain = getattr(torch, name)(a, b)
        assert torch.equal(getattr(a.clone(), name + "_")(b), plain)
        assert torch.equal(getattr(torch, name)(a, b, out=torch.empty_like(a)), plain)


def test_a_number_divides_like_a_tensor():
    """NUM-28."""
    least = torch.tensor([-(2**63), 5])
    assert (least // -1).tolist() == [-(2**63), -5]
    assert (least % -1).tolist() == [0, 0]
    assert least.fmod(-1).tolist() == [0, 0]
    assert torch.div(least, -1, rounding_mode="trunc").tolist() == [-(2**63), -5]
    assert (7 % torch.tensor([-4, 4])).tolist() == [-1, 3]
    assert torch.div(least, 2).dtype == torch.float32


@pytest.mark.parametrize("name", QUOTIENTS)
def test_division_by_zero_and_of_floating_point_numbers_are_errors(name):
    """NUM-28."""
    compute, _ = QUOTIENTS[name]
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        compute(torch.tensor([1, 2]), torch.tensor([1, 0]))
    with pytest.raises(UncertifiedOperatorError, match="is refused"), guard.translated():
        compute(torch.tensor([1.0]), torch.tensor([2.0]))
    with pytest.raises(UncertifiedOperatorError, match="is refused"), guard.translated():
        compute(torch.tensor([True]), torch.tensor([True]))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_sums_products_and_powers_keep_the_low_bits(dtype):
    """NUM-29: vectors and what is left after them."""
    numbers = torch.tensor(ends(dtype), dtype=dtype)
    for count in (len(numbers), 1000):
        a = numbers.repeat(1000)[:count]
        b = numbers.flip(0).repeat(1000)[:count]
        for compute, wanted in (
            (torch.add, lambda x, y: x + y),
            (torch.sub, lambda x, y: x - y),
            (torch.mul, lambda x, y: x * y),
        ):
            rows = zip(a.tolist(), b.tolist(), strict=True)
            assert compute(a, b).tolist() == [wrapped(wanted(x, y), dtype) for x, y in rows]
        for power in (0, 1, 2, 3, 11):
            expected = [wrapped(x**power, dtype) for x in a.tolist()]
            assert a.pow(power).tolist() == expected
            assert a.pow(torch.full_like(a, power)).tolist() == expected
        if dtype.is_signed:
            assert a.neg().tolist() == [wrapped(-x, dtype) for x in a.tolist()]
            assert a.abs().tolist() == [wrapped(abs(x), dtype) for x in a.tolist()]


def test_a_negative_power_of_an_integer_is_0_but_of_1_and_minus_1():
    """NUM-29."""
    base = torch.tensor([2, -1, -1, 1, 3, 0, -5])
    power = torch.tensor([-1, -3, -2, -1, -1, -1, -2])
    assert base.pow(power).tolist() == [0, -1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_shift_by_too_many_bits_leaves_the_sign(dtype):
    """NUM-29: vectors and what is left after them."""
    bits = 8 * dtype.itemsize
    amounts = [0, 1, bits - 1, bits, bits + 1, torch.iinfo(dtype).max]
    amounts += [-1, torch.iinfo(dtype).min] if dtype.is_signed else []
    rows = [(x, n) for x in ends(dtype) for n in amounts]
    for rounds in (1, 37):
        x, n = (torch.tensor(c, dtype=dtype).repeat(rounds) for c in zip(*rows, strict=True))
        left = [wrapped(x << n, dtype) if 0 <= n < bits else 0 for x, n in rows] * rounds
        right = [x >> n if 0 <= n < bits else x >> bits for x, n in rows] * rounds
        assert torch.bitwise_left_shift(x, n).tolist() == left
        assert torch.bitwise_right_shift(x, n).tolist() == right


# ------------------------------------------------------------------------------------ products


def int_mm_of(rows: int, depth: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.Generator(np.random.PCG64(seed))
    return tuple(
        random.integers(-128, 128, shape).astype(np.int8)
        for shape in ((rows, depth), (depth, columns))
    )


@pytest.mark.parametrize(
    "shape", [(17, 8, 8), (1, 4096, 33), (5, 1031, 7), (64, 2500, 64), (3, 0, 2), (0, 4, 4)]
)
def test_a_product_of_8_bit_integers_is_exact(shape):
    """NUM-14, in every layout, on every instruction set and number of threads."""
    a, b = int_mm_of(*shape)
    wanted = (a.astype(np.int64) @ b.astype(np.int64)).tolist()
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    before = portable.isa(), torch.get_num_threads()
    try:
        for isa in portable.isas():
            portable.set_isa(isa)
            for threads in (1, 2):
                torch.set_num_threads(threads)
                assert torch._int_mm(x, y).tolist() == wanted
        assert torch._int_mm(x, y.t().contiguous().t()).tolist() == wanted
        assert torch._int_mm(x.t().contiguous().t(), y).tolist() == wanted
        out = torch.empty(0, dtype=torch.int32)
        assert torch._int_mm(x, y, out=out) is out
        assert out.tolist() == wanted
    finally:
        portable.set_isa(before[0])
        torch.set_num_threads(before[1])


@pytest.mark.parametrize(("left", "right"), [(-128, -128), (-128, 127), (127, 127)])
def test_a_product_beyond_32_bits_keeps_the_low_ones(left, right):
    """NUM-14: numbers at the ends, where 16 bits would saturate."""
    depth = 140_000
    a = torch.full((17, depth), left, dtype=torch.int8)
    b = torch.full((8, depth), right, dtype=torch.int8).t()
    found = set(torch._int_mm(a, b).flatten().tolist())
    assert found == {wrapped(left * right * depth, torch.int32)}


def test_a_product_of_other_integers_is_refused():
    """NUM-14, NUM-92."""
    x = torch.ones(20, 8, dtype=torch.uint8)
    with pytest.raises(UncertifiedOperatorError, match="aten::_int_mm"), guard.translated():
        torch._int_mm(x, x.t())


# ------------------------------------------------------------------------------------ histograms


def bins_of(x: np.ndarray, bins: int, a: float, b: float) -> list[int]:
    """NUM-27, in NumPy's binary32."""
    low, high, counts = np.float32(a), np.float32(b), [0] * bins
    for one in x.astype(np.float32):
        if low <= one <= high:
            place = (one - low) * np.float32(bins) / (high - low)
            counts[min(int(place), bins - 1)] += 1
    return counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_histogram_counts_as_the_spec_says(dtype):
    """NUM-27."""
    x = torch.linspace(-4, 4, 10_001).to(dtype)
    x[3], x[4], x[5] = float("nan"), float("inf"), -float("inf")
    for bins, a, b in ((7, -3.0, 3.0), (100, -0.3, 0.7), (1, 0.0, 1.0)):
        wanted = bins_of(x.float().numpy(), bins, a, b)
        assert torch.histc(x, bins, a, b).tolist() == torch.tensor(wanted).to(dtype).tolist()
    few = x[100:9000]
    ends = few.float().min().item(), few.float().max().item()
    assert torch.histc(few, 9).tolist() == torch.histc(few, 9, *ends).tolist()
    assert torch.histc(torch.full((5,), 2.0, dtype=dtype), 4).tolist() == [0, 0, 5, 0]


def test_a_bin_of_more_than_2_to_the_24_is_counted_exactly():
    """NUM-27: binary32 alone stops at 2^24."""
    x = torch.zeros(2**24 + 6)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.histc(x, 3, -1, 1).tolist() == [0, 2**24 + 6, 0]
    finally:
        torch.set_num_threads(before)


def test_a_histogram_without_ends_is_an_error():
    """NUM-27."""
    for x in (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("inf")])):
        with pytest.raises(RuntimeError, match="is not finite"):
            torch.histc(x, 4)
    with pytest.raises(RuntimeError, match="max must be larger"):
        torch.histc(torch.ones(2), 4, 2, 1)


def test_counting_with_weights_is_refused_but_for_integers():
    """NUM-92: sums in the order of threads."""
    x = torch.tensor([0, 1, 1])
    assert torch.bincount(x, minlength=3).tolist() == [1, 2, 0]
    with pytest.raises(UncertifiedOperatorError, match="aten::bincount"), guard.translated():
        torch.bincount(x, torch.ones(3))


# ------------------------------------------------------------------------------------ ranges


def rounded(value: Fraction | int, dtype: torch.dtype) -> float:
    """`value` in the format, to nearest, ties to even, from the exact number."""
    digits = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}[dtype]
    value = Fraction(value)
    if value == 0:
        return 0.0
    power = math.frexp(float(abs(value)))[1] - digits
    unit = Fraction(2) ** max(power, -24 if dtype == torch.float16 else power)
    near = round(value / unit) * unit
    if dtype == torch.float16 and abs(near) >= 65520:
        return math.copysign(math.inf, near)
    return float(near)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_range_of_integers_is_rounded_once_to_the_type(dtype, threads):
    """NUM-56: on any number of threads, in vectors and after them."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for start, end, step in ((0, 40_001, 1), (2**24 - 3, 2**24 + 90_000, 3), (7, -70_000, -5)):
            wanted = [rounded(value, dtype) for value in range(start, end, step)]
            assert torch.arange(start, end, step, dtype=dtype).tolist() == wanted
    finally:
        torch.set_num_threads(before)


def test_a_range_is_not_rounded_to_binary32_on_the_way():
    """NUM-56: 1 + 2^-8 + 2^-40 is above the middle of two numbers of bfloat16."""
    assert torch.arange(1 + 2**-8 + 2**-40, 1.5, 1, dtype=torch.bfloat16).item() == 1 + 2**-7
    assert torch.linspace(1 + 2**-11 + 2**-40, 2, 1, dtype=torch.float16).item() == 1 + 2**-10
    assert torch.arange(-1 - 2**-8 + 2**-40, 1, 9, dtype=torch.bfloat16).item() == -1


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_range_of_an_integer_type_is_exact(dtype):
    """NUM-56."""
    low, high = max(-100, torch.iinfo(dtype).min), 120
    assert torch.arange(low, high, 7, dtype=dtype).tolist() == list(range(low, high, 7))
    assert torch.arange(2**62, 2**62 + 5).tolist() == list(range(2**62, 2**62 + 5))


def test_a_range_of_integers_takes_no_number_that_is_none():
    """NUM-56, NUM-87."""
    with pytest.raises(UncertifiedOperatorError, match="64 bits"), guard.translated():
        torch.arange(0, 5, 2.0**63, dtype=torch.int64)


@pytest.mark.parametrize(
    ("start", "end", "step"),
    [(0, 0, 1), (3, 3, -1), (0, 10, 3), (0, -10, -3), (-5, 5, 5), (2**53, 2**53 + 7, 2)],
)
def test_a_range_has_as_many_numbers_as_pythons(start, end, step):
    """NUM-56."""
    assert len(torch.arange(start, end, step, dtype=torch.float32)) == len(range(start, end, step))


@pytest.mark.parametrize("ends", [(0, 1, 0), (0, 1, -1), (0.0, math.inf, 1), (math.nan, 1, 1)])
def test_a_range_that_does_not_end_is_refused(ends):
    """NUM-56."""
    with pytest.raises(RuntimeError, match=r"aten::arange from|kolm|bound|range|step"):
        torch.arange(*ends, dtype=torch.float32)


# ------------------------------------------------------------------------------------ formats

FORMATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def values_of(name: str) -> list[float]:
    """The value of every code, from the vectors."""
    words = json.loads(VECTORS.read_text())[name]
    return [struct.unpack(">f", bytes.fromhex(word))[0] for word in words]


@pytest.mark.parametrize("name", FORMATS)
def test_every_code_of_an_8_bit_format_widens_to_its_number(name):
    """NUM-57: and a NaN has one pattern, NUM-5."""
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(FORMATS[name])
    wide = codes.to(torch.float32)
    for found, wanted in zip(wide.tolist(), values_of(name), strict=True):
        assert found == wanted or (math.isnan(found) and math.isnan(wanted))
    assert set(wide[wide.isnan()].view(torch.int32).tolist()) == {0x7FC00000}


@pytest.mark.parametrize("name", FORMATS)
def test_a_number_narrows_to_the_nearest_code(name):
    """NUM-57: no number saturates."""
    values = [value for value in values_of(name) if math.isfinite(value)]
    positive = sorted({value for value in values if value > 0})
    top, last = positive[-1], positive[-1] - positive[-2]
    middle = torch.tensor([(a + b) / 2 for a, b in itertools.pairwise(positive)])
    x = torch.cat([torch.tensor(positive), middle, middle * (1 + 2**-20)])
    narrow = x.to(FORMATS[name])
    for value, found in zip(x.tolist(), narrow.to(torch.float32).tolist(), strict=True):
        nearest = min(positive, key=lambda one: abs(one - value))
        assert abs(found - value) == abs(nearest - value)
    assert set((middle.to(FORMATS[name]).view(torch.uint8) & 1).tolist()) == {0}, "ties are even"
    beyond = torch.tensor([top + last / 2, top + last, 1e9, math.inf]).to(FORMATS[name])
    first = [0x7E, 0x7F, 0x7F, 0x7F] if name == "e4m3" else [0x7C, 0x7C, 0x7C, 0x7C]
    assert beyond.view(torch.uint8).tolist() == first
    negative = torch.tensor([-1e9, -math.inf, math.nan]).to(FORMATS[name]).view(torch.uint8)
    assert negative.tolist() == ([0xFF, 0xFF, 0x7F] if name == "e4m3" else [0xFC, 0xFC, 0x7F])


@given(st.floats(-500, 500, width=64))
def test_a_number_of_another_type_goes_through_binary32(value):
    """NUM-58."""
    wide = torch.tensor([value], dtype=torch.float64)
    whole = torch.tensor([int(value)])
    for to in (*FORMATS.values(), torch.bfloat16, torch.float16):
        for x in (wide, whole, wide * 2.0**100, whole * 2**45 + 1):
            assert torch.equal(x.to(to).view(torch.uint8), x.float().to(to).view(torch.uint8))
    assert torch.tensor([value]).to(torch.float8_e5m2).to(torch.int64).item() == int(
        torch.tensor([value]).to(torch.float8_e5m2).float().item()
    )


def test_a_format_that_the_spec_does_not_know_is_moved_and_not_converted():
    """NUM-58."""
    codes = torch.arange(9, dtype=torch.uint8)
    for other in (torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu):
        assert codes.view(other).clone().view(torch.uint8).tolist() == list(range(9))
        with pytest.raises(UncertifiedOperatorError, match="not converted"), guard.translated():
            codes.view(other).to(torch.float32)
        with pytest.raises(UncertifiedOperatorError, match="not converted"), guard.translated():
            torch.ones(3).to(other)


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.zeros(2, dtype=torch.int64).fill_(2.0**63),
        lambda: torch.full((2,), 2.0**63, dtype=torch.int64),
        lambda: torch.zeros(2, dtype=torch.int64).masked_fill_(torch.tensor(True), 2.0**63),
        lambda: torch.zeros(2, dtype=torch.int64).index_fill_(0, torch.tensor([1]), 2.0**63),
        lambda: torch.zeros(2, dtype=torch.int64).scatter_(0, torch.tensor([1]), 2.0**63),
        lambda: torch.scalar_tensor(2.0**63, dtype=torch.int64),
        lambda: torch.nn.functional.pad(torch.zeros(2, dtype=torch.int64), (1, 1), value=2.0**63),
        lambda: torch.nn.functional.hardtanh(torch.zeros(2, dtype=torch.int64), 0, 2.0**63),
        lambda: torch.nn.functional.threshold(torch.zeros(2, dtype=torch.int64), 2.0**63, 1),
        lambda: torch.zeros(2, dtype=torch.int64).fill_(math.nan),
        lambda: torch.full((2,), 449.0, dtype=torch.float8_e4m3fn),
        lambda: torch.full((2,), 17, dtype=torch.float8_e4m3fn),
        lambda: torch.full((2,), 0.3, dtype=torch.float8_e5m2),
    ],
)
def test_a_number_that_the_type_does_not_hold_fills_no_tensor(call):
    """NUM-87: what it would become is the processor's affair, or PyTorch's."""
    with pytest.raises(UncertifiedOperatorError, match="does not hold"), guard.translated():
        call()


def test_a_number_that_the_type_holds_fills_a_tensor():
    """NUM-87."""
    assert torch.full((1,), -(2.0**63), dtype=torch.int64).item() == -(2**63)
    assert torch.full((1,), 2.7, dtype=torch.int32).item() == 2
    assert torch.full((1,), 2**63 - 1, dtype=torch.int64).item() == 2**63 - 1
    assert torch.full((1,), 448.0, dtype=torch.float8_e4m3fn).float().item() == 448
    assert torch.full((1,), 16, dtype=torch.float8_e4m3fn).float().item() == 16
    assert torch.zeros(1, dtype=torch.float8_e5m2).fill_(-math.inf).float().item() == -math.inf


def test_choosing_between_bounds_has_every_form():
    """NUM-90."""
    x = torch.linspace(-2, 2, 9)
    wanted = torch.nn.functional.hardtanh(x)
    assert torch.equal(torch.ops.aten.hardtanh.out(x, out=torch.empty(9)), wanted)
    assert torch.equal(torch.ops.aten.hardtanh_(x.clone()), wanted)
