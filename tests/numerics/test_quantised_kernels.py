"""Products with quantised weights: bit for bit what the spec says, on every instruction set."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kolm_build.core.quantisation import SCHEMES, format_of
from kolm_build.numerics import certified, guard, portable, quantised

OPS = torch.ops.kolm_portable
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
STORED = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module", autouse=True)
def guarded():
    with guard.activate(), torch.no_grad():
        yield


@dataclass(frozen=True)
class Weight:
    """A weight as its file stores it, and its values by NumPy alone.

    Attributes:
        values: float32 [N, K], one rounding a value (NUM-130).
        linear: Multiplies x with it, given an optional bias.
        rows: Gives the rows at indices, given an optional dtype.
        dynamic: Multiplies 8-bit integers of x with it; None where the codes are no integers.
        codes: int64 [N, K], zeros taken off; None where the codes are no integers.
        scales: float32 [N, groups].
        group: Columns that share a scale.
    """

    values: np.ndarray
    linear: object
    rows: object
    dynamic: object = None
    codes: np.ndarray | None = None
    scales: np.ndarray | None = None
    group: int = 0


def packed(codes: np.ndarray, bits: int) -> torch.Tensor:
    """int32 words along the last dimension, the first code in the low bits, as offset binary."""
    each = 32 // bits
    rows, columns = codes.shape
    padded = np.zeros((rows, -(-columns // each) * each), np.uint64)
    padded[:, :columns] = codes + (1 << (bits - 1))
    shifts = np.arange(each, dtype=np.uint64) * np.uint64(bits)
    words = (padded.reshape(rows, -(-columns // each), each) << shifts).sum(axis=2, dtype=np.uint64)
    return torch.from_numpy(words.astype(np.uint32).view(np.int32).copy())


def scale_of(random: np.random.Generator, shape: tuple[int, int], dtype: torch.dtype):
    scale = torch.from_numpy(random.uniform(1e-3, 3e-2, shape).astype(np.float32)).to(dtype)
    return scale, scale.float().numpy()


def integers(seed: int, n: int, k: int, *, bits: int, group: int, dtype=torch.float32,
             asymmetric: bool = False, plain: bool = False) -> Weight:  # fmt: skip
    """Codes of 4 or 8 bits, packed or plain int8."""
    random = np.random.default_rng(seed)
    half, groups = 1 << (bits - 1), -(-k // (group or k)) if k else 0
    codes = random.integers(-half, half, (n, k))
    scale, wide = scale_of(random, (n, groups), dtype)
    zeros = random.integers(-half, half, (n, groups)) if asymmetric else np.zeros((n, groups), int)
    spread = np.arange(k) // (group or max(k, 1))
    centred = codes - zeros[:, spread]
    weight = torch.from_numpy(codes.astype(np.int8)) if plain else packed(codes, bits)
    stored = packed(zeros.T, bits).t().contiguous() if asymmetric else None
    about = (weight, scale, stored, bits, group)
    return Weight(
        values=centred.astype(np.float32) * wide[:, spread],
        linear=lambda x, bias=None: OPS.quantised_linear_int(x, *about, bias),
        rows=lambda i, dtype=None: OPS.dequantise_int(i, *about, k, dtype),
        dynamic=lambda x, *more: OPS.quantised_linear_int_dynamic(x, *about, *more),
        codes=centred,
        scales=wide,
        group=group or max(k, 1),
    )


def pair_codes(random: np.random.Generator, n: int, k: int) -> tuple[torch.Tensor, np.ndarray]:
    codes = random.integers(0, 16, (n, k)).astype(np.uint8)
    numbers = np.where(codes & 8, -E2M1[codes & 7], E2M1[codes & 7])
    return torch.from_numpy(codes[:, ::2] | codes[:, 1::2] << 4), numbers


def nvfp4(seed: int, n: int, k: int) -> Weight:
    random = np.random.default_rng(seed)
    codes, numbers = pair_codes(random, n, k)
    scale = torch.from_numpy(random.integers(0, 127, (n, k // 16)).astype(np.uint8))
    scale = scale.view(torch.float8_e4m3fn)
    largest = np.float32(random.uniform(100, 9000))
    both = (scale.float().numpy() / largest).repeat(16, axis=1)
    about = (codes, scale, torch.tensor([largest]))
    return Weight(
        values=numbers * both,
        linear=lambda x, bias=None: OPS.quantised_linear_nvfp4(x, *about, bias),
        rows=lambda i, dtype=None: OPS.dequantise_nvfp4(i, *about, dtype),
    )


def mxfp4(seed: int, n: int, k: int) -> Weight:
    random = np.random.default_rng(seed)
    codes, numbers = pair_codes(random, n, k)
    powers = random.integers(100, 140, (n, k // 32)).astype(np.uint8)
    if powers.size:
        powers.flat[0] = 0  # 2^-127: a subnormal number
    both = np.ldexp(np.float32(1), powers.astype(np.int32) - 127).astype(np.float32)
    about = (codes, torch.from_numpy(powers))
    return Weight(
        values=numbers * both.repeat(32, axis=1),
        linear=lambda x, bias=None: OPS.quantised_linear_mxfp4(x, *about, bias),
        rows=lambda i, dtype=None: OPS.dequantise_mxfp4(i, *about, dtype),
    )


def fp8(seed: int, n: int, k: int, dtype=torch.float32) -> Weight:
    random = np.random.default_rng(seed)
    bits = random.integers(0, 127, (n, k)) | random.integers(0, 2, (n, k)) << 7
    weight = torch.from_numpy(bits.astype(np.uint8)).view(torch.float8_e4m3fn)
    scale, wide = scale_of(random, (n, 1), dtype)
    return Weight(
        values=weight.float().numpy() * wide,
        linear=lambda x, bias=None: OPS.quantised_linear_fp8(x, weight, scale, bias),
        rows=lambda i, dtype=None: OPS.dequantise_fp8(i, weight, scale, dtype),
    )


KINDS = {
    "w4 groups": lambda s, n, k: integers(s, n, up(k, 32), bits=4, group=32, dtype=torch.bfloat16),
    "w4 groups of 8": lambda s, n, k: integers(s, n, up(k, 8), bits=4, group=8),
    "w4 channel": lambda s, n, k: integers(s, n, k, bits=4, group=0, dtype=torch.float16),
    "w4 asymmetric": lambda s, n, k: integers(
        s, n, up(k, 64), bits=4, group=64, asymmetric=True, dtype=torch.bfloat16
    ),
    "w8 packed": lambda s, n, k: integers(s, n, k, bits=8, group=0, dtype=torch.bfloat16),
    "w8 groups": lambda s, n, k: integers(s, n, up(k, 24), bits=8, group=24),
    "w8 asymmetric": lambda s, n, k: integers(s, n, k, bits=8, group=0, asymmetric=True),
    "w8 plain": lambda s, n, k: integers(s, n, k, bits=8, group=0, plain=True),
    "nvfp4": lambda s, n, k: nvfp4(s, n, up(k, 16)),
    "mxfp4": lambda s, n, k: mxfp4(s, n, up(k, 32)),
    "fp8": fp8,
}
INTEGERS = [name for name in KINDS if name.startswith("w")]
SHAPES = [(1, 1, 1), (1, 40, 576), (2, 33, 257), (5, 70, 600), (9, 100, 1031), (40, 130, 300)]


def up(k: int, multiple: int) -> int:
    return -(-k // multiple) * multiple


def inputs(seed: int, rows: int, columns: int) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(seed + 1).standard_normal((rows, columns)).astype(np.float32)
    )


def everywhere():
    """Each instruction set and number of threads, one after another; then as it was."""
    before = portable.isa(), torch.get_num_threads()
    try:
        for isa in portable.isas():
            for threads in (1, 2):
                portable.set_isa(isa)
                torch.set_num_threads(threads)
                yield isa, threads
    finally:
        portable.set_isa(before[0])
        torch.set_num_threads(before[1])


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return found.dtype == wanted.dtype and torch.equal(bits_of(found), bits_of(wanted))


def bits_of(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def product_of(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """NUM-10 in NumPy."""
    total = np.zeros((len(x), len(weight)), np.float32)
    for start in range(0, x.shape[1], 256):
        chunk = np.zeros_like(total)
        for k in range(start, min(start + 256, x.shape[1])):
            chunk = fused(x[:, k, None], weight[None, :, k], chunk)
        total = total + chunk
    return total


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """fma: binary64 holds the product; a sum rounded to odd rounds again as an exact one would."""
    product, wide = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + wide
    part = total - product
    error = (product - (total - part)) + (wide - part)
    bits = total.view(np.int64).copy()
    step = np.where((error > 0) == (total > 0), 1, -1)
    bits += np.where((error != 0) & (bits & 1 == 0), step, 0)
    return bits.view(np.float64).astype(np.float32)


# ------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("name", KINDS)
def test_rows_of_a_quantised_weight_are_rounded_once(name):
    """NUM-130, NUM-135: every code, in every storage format of the result."""
    weight = KINDS[name](3, 70, 608)
    values = torch.from_numpy(weight.values)
    indices = torch.tensor([[69, 0], [3, 3]])
    for _ in everywhere():
        assert same(weight.rows(torch.arange(70)), values)
        for dtype in STORED:
            assert same(weight.rows(indices, dtype), values[indices].to(dtype))
    assert weight.rows(torch.zeros(0, dtype=torch.int64)).shape == (0, weight.values.shape[1])


# ------------------------------------------------------------------------------------ products


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_a_product_with_a_quantised_weight_is_linear_of_its_values(name, shape):
    """NUM-131: one row, few rows and many, with and without a bias, in every storage format."""
    rows, n, k = shape
    weight = KINDS[name](rows + n, n, k)
    values = torch.from_numpy(weight.values)
    x, bias = inputs(n, rows, values.shape[1]), inputs(k, 1, n)[0]
    linear = torch.nn.functional.linear
    wanted = linear(x, values)
    assert same(wanted, torch.from_numpy(product_of(x.numpy(), weight.values)))
    for _ in everywhere():
        assert same(weight.linear(x), wanted)
        assert same(weight.linear(x, bias), linear(x, values, bias))
        assert same(weight.linear(x.bfloat16()), linear(x.bfloat16().float(), values).bfloat16())
        assert same(weight.linear(x.half(), bias), linear(x.half().float(), values, bias).half())


def stored_product(x: torch.Tensor, tensors: dict[str, torch.Tensor], grid) -> torch.Tensor:
    """The operator that reads a layer as the file holds it."""
    scale, zero = tensors["weight_scale"], tensors.get("weight_zero_point")
    weight = tensors["weight_packed"] if "weight_packed" in tensors else tensors["weight"]
    if grid.kind == "int":
        return OPS.quantised_linear_int(x, weight, scale, zero, grid.bits, max(grid.group, 0))
    if grid.kind == "nvfp4":
        return OPS.quantised_linear_nvfp4(x, weight, scale, tensors["weight_global_scale"])
    operator = OPS.quantised_linear_fp8 if grid.kind == "fp8" else OPS.quantised_linear_mxfp4
    return operator(x, weight, scale)


@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize("name", SCHEMES)
def test_a_layer_as_its_file_holds_it_is_linear_of_what_it_stands_for(name, dtype):
    """NUM-131: every scheme of the product, its scales in every dtype of a model."""
    scheme, weight = SCHEMES[name], inputs(8, 70, 576)
    grid = scheme.grid(576)
    chosen = quantised.scales(weight, grid, dtype=dtype)
    matrix = quantised.nearest(weight, chosen)
    tensors = quantised.pack(matrix, format_of(grid, scheme.activations))
    for rows in (1, 3, 40):
        x = inputs(rows, rows, 576)
        wanted = torch.nn.functional.linear(x, quantised.values(matrix))
        assert same(stored_product(x, tensors, grid), wanted)


@settings(max_examples=60)
@given(
    name=st.sampled_from(list(KINDS)),
    rows=st.integers(0, 20),
    n=st.integers(0, 80),
    k=st.integers(0, 700),
    seed=st.integers(0, 2**32 - 1),
)
def test_whatever_the_shape_a_product_is_linear_of_the_values(name, rows, n, k, seed):
    """NUM-131."""
    weight = KINDS[name](seed, n, k)
    x = inputs(seed, rows, weight.values.shape[1])
    wanted = torch.nn.functional.linear(x, torch.from_numpy(weight.values))
    for _ in everywhere():
        assert same(weight.linear(x), wanted)


@pytest.mark.parametrize("name", KINDS)
def test_a_row_is_the_same_alone_and_among_others(name):
    """NUM-11, NUM-131, NUM-134: a batch, and the layout of x."""
    weight = KINDS[name](5, 45, 320)
    x = inputs(5, 21, weight.values.shape[1])
    products = [weight.linear] + ([weight.dynamic] if weight.dynamic else [])
    for product in products:
        whole = product(x)
        assert same(product(x.t().contiguous().t()), whole)
        assert same(product(x.view(3, 7, -1)).view(21, -1), whole)
        for i in range(21):
            assert same(product(x[i]), whole[i])
            assert same(product(x[: i + 1])[i], whole[i])


def test_a_value_that_is_no_number_becomes_the_one_nan():
    """NUM-5, NUM-131: codes and scales that are NaN, and overflow."""
    codes = torch.full((3, 32), 0x7F, dtype=torch.uint8)
    codes[1] = 0xFF
    codes[2] = 0x7E
    weight, scale = codes.view(torch.float8_e4m3fn), torch.tensor([[1.0], [1.0], [3e38]])
    wanted = torch.tensor([[0x7FC00000] * 2 + [0x7F800000]], dtype=torch.int32).view(torch.float32)
    powers = torch.full((2, 1), 255, dtype=torch.uint8)
    for _ in everywhere():
        for rows in (1, 30):
            found = OPS.quantised_linear_fp8(torch.ones(rows, 32), weight, scale)
            assert same(found, wanted.expand(rows, 3))
            found = OPS.quantised_linear_mxfp4(torch.ones(rows, 32), codes[:2, :16], powers)
            assert same(found, wanted[:, :1].expand(rows, 2))
        assert same(OPS.dequantise_fp8(torch.arange(3), weight, scale)[:, 0], wanted[0])


# ------------------------------------------------------------------------------------ integers


def integers_of(x: np.ndarray, fixed: np.float32 | None) -> tuple[np.ndarray, np.ndarray]:
    """NUM-132: the codes of rows and their scales."""
    most = np.abs(x).max(axis=1, initial=0).astype(np.float32)
    scale = np.full(len(x), fixed) if fixed is not None else most / np.float32(127)
    finite = np.isfinite(most)
    with np.errstate(all="ignore"):
        codes = np.rint(np.clip(x / scale[:, None], np.float32(-127), np.float32(127)))
    codes[(scale == 0) | ~finite] = 0
    return codes.astype(np.int64), np.where(finite, scale, np.float32(np.nan)).astype(np.float32)


def dots_of(x: np.ndarray, weight: Weight, fixed: np.float32 | None = None) -> torch.Tensor:
    """NUM-134 in NumPy."""
    codes, scale = integers_of(x, fixed)
    total = np.zeros((len(x), len(weight.codes)), np.float32)
    for group in range(weight.scales.shape[1]):
        of = slice(group * weight.group, (group + 1) * weight.group)
        dot = (codes[:, of] @ weight.codes[:, of].T).astype(np.float32)
        total = fused(dot, scale[:, None] * weight.scales[None, :, group], total)
    total[np.isnan(total)] = np.float32(np.nan)
    return torch.from_numpy(total)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", INTEGERS)
def test_a_product_of_integers_is_exact_within_a_group(name, shape):
    """NUM-132 to NUM-134, NUM-12: one row, few rows and many."""
    rows, n, k = shape
    weight = KINDS[name](rows + n, n, k)
    x, bias = inputs(n, rows, weight.values.shape[1]), inputs(k, 1, n)[0]
    wanted, fixed = dots_of(x.numpy(), weight), torch.tensor([0.0123])
    fixed_wanted = dots_of(x.numpy(), weight, fixed.numpy()[0])
    for _ in everywhere():
        assert same(weight.dynamic(x), wanted)
        assert same(weight.dynamic(x, bias), wanted + bias)
        assert same(weight.dynamic(x, None, fixed), fixed_wanted)
        low = x.bfloat16()
        assert same(weight.dynamic(low), dots_of(low.float().numpy(), weight).bfloat16())


@settings(max_examples=60)
@given(
    name=st.sampled_from(INTEGERS),
    rows=st.integers(0, 20),
    n=st.integers(0, 80),
    k=st.integers(0, 700),
    seed=st.integers(0, 2**32 - 1),
)
def test_whatever_the_shape_a_product_of_integers_is_exact(name, rows, n, k, seed):
    """NUM-133, NUM-134."""
    weight = KINDS[name](seed, n, k)
    x = inputs(seed, rows, weight.values.shape[1])
    wanted = dots_of(x.numpy(), weight)
    for _ in everywhere():
        assert same(weight.dynamic(x), wanted)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_products_do_not_saturate(bits, sign):
    """NUM-133: 16 bits would, and the codes' ends are -128 and 127, -8 and 7."""
    k, half = 2048, 1 << (bits - 1)
    codes = np.array([[-half] * k, [half - 1] * k, [-half, half - 1] * (k // 2)])
    scale = torch.ones(3, 1)
    for x in (torch.full((5, k), sign), torch.tensor([[sign, -sign] * (k // 2)] * 5)):
        dots = (x.numpy() * 127).astype(np.int64) @ codes.T
        wanted = torch.from_numpy(dots.astype(np.float32)) * torch.tensor(np.float32(1 / 127))
        for _ in everywhere():
            for rows in (1, 5):
                found = OPS.quantised_linear_int_dynamic(
                    x[:rows], packed(codes, bits), scale, None, bits, 0
                )
                assert same(found, wanted[:rows])


def test_rows_without_a_scale_are_zero_or_no_number():
    """NUM-132: rows of zeros, of numbers too small to divide, with infinities and NaN."""
    weight = integers(1, 20, 64, bits=8, group=0)
    x = inputs(0, 7, 64)
    x[0] = 0.0
    x[1] = 1e-45
    x[2, 5] = float("inf")
    x[3, 7] = float("nan")
    x[4] *= 1e-38
    x[5] = torch.full((64,), 2.0**-142)
    wanted = dots_of(x.numpy(), weight)
    assert wanted[2].isnan().all()
    assert wanted[3].isnan().all()
    assert (wanted[:2] == 0).all()
    for _ in everywhere():
        assert same(weight.dynamic(x), wanted)


# ------------------------------------------------------------------------------------ refusals

GOOD = {
    "x": torch.ones(2, 64),
    "weight": torch.zeros(6, 8, dtype=torch.int32),
    "scale": torch.ones(6, 2),
    "zero_point": None,
    "bits": 4,
    "group": 32,
    "bias": None,
}
BAD = {
    "x as integers": ({"x": torch.ones(2, 64, dtype=torch.int64)}, "expects x in float32"),
    "x of another width": ({"x": torch.ones(2, 96)}, "expects weight of shape"),
    "a number": ({"x": torch.tensor(1.0)}, "expects x to have columns"),
    "weight of floats": ({"weight": torch.ones(6, 8)}, "int32 .packed. or int8, got Float"),
    "weight of three dimensions": ({"weight": torch.zeros(1, 6, 8).int()}, "a matrix as weight"),
    "3 bits": ({"bits": 3}, "4 and 8 bits"),
    "scale of other groups": ({"scale": torch.ones(6, 3)}, "expects scale of shape"),
    "scale in float64": ({"scale": torch.ones(6, 2).double()}, "expects scale in float32"),
    "a group that does not divide": ({"group": 24}, "a multiple of 8 that divides the 64"),
    "a group of 4": ({"group": 4}, "a multiple of 8"),
    "a negative group": ({"group": -8}, "a multiple of 8"),
    "zeros of another shape": ({"zero_point": torch.zeros(6, 2).int()}, "expects zero_point"),
    "zeros that are not packed": ({"zero_point": torch.zeros(1, 2)}, "expects zero_point in Int"),
    "a bias of another width": ({"bias": torch.ones(5)}, "expects a bias of 6"),
    "x with a gradient": ({"x": torch.ones(2, 64, requires_grad=True)}, "has no gradient"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("name", ["quantised_linear_int", "quantised_linear_int_dynamic"])
def test_a_wrong_argument_is_refused_by_name(name, case):
    """NUM-136."""
    changed, message = BAD[case]
    getattr(OPS, name)(*GOOD.values())
    with torch.enable_grad(), pytest.raises(RuntimeError, match=f"{name} .*{message}"):
        getattr(OPS, name)(*(GOOD | changed).values())


def test_other_formats_refuse_wrong_arguments_too():
    """NUM-136."""
    x, pairs = torch.ones(1, 32), torch.zeros(4, 16, dtype=torch.uint8)
    scale = torch.zeros(4, 2, dtype=torch.uint8).view(torch.float8_e4m3fn)
    refusals = [
        (lambda: OPS.quantised_linear_nvfp4(x, pairs, scale, torch.zeros(1)), "a number above 0"),
        (lambda: OPS.quantised_linear_nvfp4(x, pairs, scale, torch.ones(2)), "one floating point"),
        (
            lambda: OPS.quantised_linear_nvfp4(x, pairs.int(), scale, torch.ones(1)),
            "packed in Byte",
        ),
        (lambda: OPS.quantised_linear_nvfp4(x, pairs, pairs[:, :2], torch.ones(1)), "scale in Fl"),
        (lambda: OPS.quantised_linear_mxfp4(x, pairs, pairs[:, :2]), "scale of shape .4, 1."),
        (lambda: OPS.quantised_linear_mxfp4(x, pairs[:, :9], pairs[:, :1]), "in groups of 32"),
        (lambda: OPS.quantised_linear_fp8(x, pairs, torch.ones(4, 1)), "weight in Float8_e4m3fn"),
        (lambda: OPS.dequantise_fp8(torch.tensor([1.0]), scale, torch.ones(4, 1)), "indices"),
        (
            lambda: OPS.dequantise_fp8(torch.tensor([1]), scale, torch.ones(4, 1), torch.int8),
            "give",
        ),
        (
            lambda: OPS.quantised_linear_int_dynamic(
                x, torch.zeros(4, 32).char(), torch.ones(4, 1), None, 8, 0, None, torch.zeros(1)
            ),
            "input_scale to be a number above 0",
        ),
        (
            lambda: OPS.quantised_linear_int_dynamic(
                torch.ones(70_000), torch.zeros(1, 70_000).char(), torch.ones(1, 1), None, 8, 0
            ),
            "at most 65536",
        ),
    ]
    for call, message in refusals:
        with pytest.raises(RuntimeError, match=message):
            call()
    for index in (-1, 4):
        with pytest.raises(IndexError, match=f"no row {index} among 4"):
            OPS.dequantise_fp8(torch.tensor([index]), scale, torch.ones(4, 1))


def test_the_operators_on_quantised_weights_stand_in_the_table():
    """NUM-90: and no other of this library's own that computes for a model."""
    mine = {
        schema.partition("(")[0]
        for schema in torch.ops.kolm_guard.operations()
        if schema.startswith(("kolm_portable::quantised", "kolm_portable::dequantise"))
    }
    assert mine == set(certified.names("own"))
    assert len(mine) == 9
