"""The functions are the mathematics, rounded once (spec/numerics.md, functions, formats, AdamW).

Every input of every function is checked by `make exhaustive`; here are samples, in seconds.
"""

import ctypes
import json
import math
from pathlib import Path

import numpy as np
import pytest
from mpmath import mp, mpf

from tests.numerics.kernels import (
    FORMATS,
    SCALARS,
    UNARY,
    AdamW,
    Kernels,
    all_kernels,
    numbers,
    same_bits,
    special_values,
)

ALL = all_kernels()
BEST = ALL[0]
NAN = 0x7FC00000

# Inputs whose value lies next to the middle of two binary32 numbers, found by exhaustion.
HARD = np.array(
    [
        0x37B0A46F, 0x35400003, 0x3710001B, 0x3C413D3A, 0x41178FEB, 0x4C5D65A5, 0x65D890D3,
        0x6F31A8EC, 0x33A00000, 0x32200000, 0x3FA3A4E2, 0x3F407581, 0x3F414072, 0x3F98A196,
        0x33206C99, 0x32A06C99, 0x38D0DF65, 0x4168A95D, 0x3A928601, 0x39EA41D0, 0x0EFEEE7A,
        0x3B429D37, 0x3CF3A937, 0x46199998, 0x5F18B878, 0x6115CB11,
    ],
    np.uint32,
)  # fmt: skip


def logistic(x):
    return 1 / (1 + mp.exp(-x))


def softplus(x):
    return mp.log1p(mp.exp(x))


def phi(x):
    return mp.erfc(-x / mp.sqrt(2)) / 2


def gelu_argument(x):
    return 2 * mp.sqrt(2 / mp.pi) * (x + mpf("0.044715") * x**3)


def gelu_tanh_derivative(x):
    slope = 2 * mp.sqrt(2 / mp.pi) * (1 + 3 * mpf("0.044715") * x * x)
    t = gelu_argument(x)
    return logistic(t) * (1 + x * slope * logistic(-t))


def mish_derivative(x):
    t = mp.tanh(softplus(x))
    return t + x * (1 - t * t) * logistic(x)


EXACT = {
    "exp": mp.exp,
    "exp2": lambda x: mpf(2) ** x,
    "expm1": mp.expm1,
    "log": mp.log,
    "log1p": mp.log1p,
    "log2": lambda x: mp.log(x) / mp.log(2),
    "log10": lambda x: mp.log(x) / mp.log(10),
    "tanh": mp.tanh,
    "erf": mp.erf,
    "erfc": mp.erfc,
    "sigmoid": logistic,
    "log_sigmoid": lambda x: -softplus(-x),
    "silu": lambda x: x * logistic(x),
    "gelu": lambda x: x * phi(x),
    "gelu_tanh": lambda x: x * logistic(gelu_argument(x)),
    "rsqrt": lambda x: 1 / mp.sqrt(x),
    "sqrt": mp.sqrt,
    "reciprocal": lambda x: 1 / x,
    "square": lambda x: x * x,
    "sin": mp.sin,
    "cos": mp.cos,
    "softplus": softplus,
    "mish": lambda x: x * mp.tanh(softplus(x)),
    "silu_derivative": lambda x: logistic(x) * (1 + x * logistic(-x)),
    "gelu_derivative": lambda x: phi(x) + x * mp.npdf(x),
    "gelu_tanh_derivative": gelu_tanh_derivative,
    "softplus_derivative": logistic,
    "log_sigmoid_derivative": lambda x: logistic(-x),
    "mish_derivative": mish_derivative,
}


def rounded(value: mpf, like: float) -> np.float32:
    """`value` rounded to binary32 once, to nearest, ties to even; a zero has the sign of `like`."""
    if value == 0:
        return np.float32(math.copysign(0.0, like))
    exponent = max(int(mp.floor(mp.log(abs(value), 2))) - 23, -149)
    while abs(value) >= mpf(2) ** (exponent + 24):
        exponent += 1
    while exponent > -149 and abs(value) < mpf(2) ** (exponent + 23):
        exponent -= 1
    with mp.workprec(2000):
        whole = int(mp.nint(value / mpf(2) ** exponent))  # nint takes ties to even
    if whole == 0:
        return np.float32(math.copysign(0.0, float(mp.sign(value))))
    if abs(whole) * mpf(2) ** exponent >= mpf(2) ** 128:
        return np.float32(math.copysign(math.inf, whole))
    return np.float32(math.ldexp(whole, exponent))


def sample(name: str) -> np.ndarray:
    """Finite inputs where the function is defined."""
    tiny = np.array([1, 3, 5, 0x7FFFFF, 0x800001], np.uint32).view(np.float32)
    x = np.concatenate([HARD.view(np.float32), tiny, numbers(1, 30, 8.0), numbers(2, 12, 100.0)])
    x = np.concatenate([x, -x, np.float32([1e-3, -1e-3, 1e30, -1e30, 2**21 + 1.0, 12345.678])])
    if name in ("log", "log2", "log10", "rsqrt", "sqrt"):
        x = np.abs(x)
    if name == "log1p":
        x = x[x > -1]
    return x.astype(np.float32)


@pytest.mark.parametrize("name", sorted(EXACT))
def test_a_function_is_the_correctly_rounded_value_of_the_mathematics(name: str) -> None:
    """NUM-50, NUM-51, NUM-52: the correctly rounded value of the mathematical function."""
    x = sample(name)
    actual = BEST.unary(name, x)
    with mp.workprec(500):
        for value, got in zip(x, actual, strict=True):
            if abs(value) > 200 and name not in ("log", "log1p", "log2", "log10", "sin", "cos"):
                continue  # the limits are tested on their own
            want = rounded(EXACT[name](mpf(float(value))), float(value))
            assert got == want, f"{name}({float(value).hex()}) = {float(got).hex()}"


LIMITS = {
    "exp": (0.0, math.inf), "exp2": (0.0, math.inf), "expm1": (-1.0, math.inf),
    "log": (math.nan, math.inf), "log1p": (math.nan, math.inf), "log2": (math.nan, math.inf),
    "log10": (math.nan, math.inf), "tanh": (-1.0, 1.0), "erf": (-1.0, 1.0), "erfc": (2.0, 0.0),
    "sigmoid": (0.0, 1.0), "log_sigmoid": (-math.inf, -0.0), "silu": (-0.0, math.inf),
    "gelu": (-0.0, math.inf), "gelu_tanh": (-0.0, math.inf), "rsqrt": (math.nan, 0.0),
    "sqrt": (math.nan, math.inf), "reciprocal": (-0.0, 0.0), "square": (math.inf, math.inf),
    "cube": (-math.inf, math.inf), "sin": (math.nan, math.nan), "cos": (math.nan, math.nan),
    "softplus": (0.0, math.inf), "mish": (-0.0, math.inf), "silu_derivative": (-0.0, 1.0),
    "gelu_derivative": (-0.0, 1.0), "gelu_tanh_derivative": (-0.0, 1.0),
    "softplus_derivative": (0.0, 1.0), "log_sigmoid_derivative": (1.0, 0.0),
    "mish_derivative": (-0.0, 1.0),
}  # fmt: skip
ZEROS = {
    "exp": 1.0, "exp2": 1.0, "log": -math.inf, "log2": -math.inf, "log10": -math.inf, "erfc": 1.0,
    "sigmoid": 0.5, "cos": 1.0, "silu_derivative": 0.5, "gelu_derivative": 0.5,
    "gelu_tanh_derivative": 0.5, "softplus_derivative": 0.5, "log_sigmoid_derivative": 0.5,
    "square": 0.0,
}  # fmt: skip
ODD_AT_ZERO = [
    "expm1", "log1p", "tanh", "erf", "silu", "gelu", "gelu_tanh", "sqrt", "cube", "sin", "mish"
]  # fmt: skip


def bits(values) -> list[int]:
    array = np.array(values, np.float32)
    return [NAN if np.isnan(v) else int(v.view(np.uint32)) for v in array]


@pytest.mark.parametrize("name", UNARY)
def test_infinities_have_the_limit_as_value_and_nan_has_one_pattern(name: str) -> None:
    """NUM-50: special values as in C's annex F, else the limit; NUM-5: one NaN."""
    x = np.array([0xFF800000, 0x7F800000, 0x7F800001, 0xFFC00001], np.uint32).view(np.float32)
    got = BEST.unary(name, x).view(np.uint32).tolist()
    assert got == [*bits(LIMITS[name]), NAN, NAN]


@pytest.mark.parametrize("name", sorted(ZEROS))
def test_at_zero_a_function_has_its_value(name: str) -> None:
    """NUM-50, at +0 and -0."""
    got = BEST.unary(name, np.float32([0.0, -0.0])).view(np.uint32).tolist()
    assert got == bits([ZEROS[name]] * 2)


@pytest.mark.parametrize("name", ODD_AT_ZERO)
def test_a_zero_keeps_its_sign(name: str) -> None:
    """NUM-50: f(-0) = -0 where f(0) = 0 and f rises through 0."""
    x = np.float32([0.0, -0.0])
    assert same_bits(BEST.unary(name, x), x)


@pytest.mark.parametrize("other", ALL[1:], ids=repr)
@pytest.mark.parametrize("name", UNARY)
def test_every_instruction_set_gives_the_same_bits(name: str, other: Kernels) -> None:
    """NUM-1, NUM-2: nothing depends on the instruction set."""
    x = np.concatenate([special_values(), numbers(3, 3001, 30.0), numbers(4, 999, 2.0**40)])
    assert same_bits(BEST.unary(name, x), other.unary(name, x))


def test_a_function_may_write_over_its_input() -> None:
    """NUM-50: in place gives the same bits."""
    x = numbers(5, 1003, 5.0)
    y = x.copy()
    BEST.call("unary", ctypes.c_int(UNARY.index("silu")), y.size, y, y)
    assert same_bits(y, BEST.unary("silu", x))


def test_pow_is_at_most_one_unit_off_and_exact_for_the_named_exponents() -> None:
    """NUM-53: exact for 0, 1, 2, 3, -1, 0.5, -0.5; else at most 1 ulp off."""
    x = np.abs(numbers(6, 400, 50.0))
    y = numbers(7, 400, 9.0)
    got = BEST.binary("pow", x, y)
    with mp.workprec(300):
        for a, b, actual in zip(x, y, got, strict=True):
            want = rounded(mpf(float(a)) ** mpf(float(b)), 1.0)
            assert abs(int(actual.view(np.uint32)) - int(want.view(np.uint32))) <= 1
    for exponent, name in (
        (2, "square"),
        (3, "cube"),
        (-1, "reciprocal"),
        (0.5, "sqrt"),
        (-0.5, "rsqrt"),
    ):
        power = np.full_like(x, exponent)
        assert same_bits(BEST.binary("pow", x, power), BEST.unary(name, x))
    assert same_bits(BEST.binary("pow", x, np.ones_like(x)), x)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_pow_has_the_special_values_of_c() -> None:
    """NUM-53 and C's annex F, against the C library where it is exact or special."""
    some = np.float32([0.0, 1.0, 2.0, 3.0, 0.25, 7.0, 16777216.0, 1e30, np.inf, np.nan])
    x = np.concatenate([some, -some])
    a, b = (v.ravel() for v in np.meshgrid(x, x))
    keep = ~np.isin(np.abs(b), np.float32([2.0, 3.0, 0.25, 7.0, 1.0])) | np.isinf(a) | (a == 0)
    a, b = a[keep].copy(), b[keep].copy()
    want = np.array([_c_pow(float(p), float(q)) for p, q in zip(a, b, strict=True)], np.float32)
    got = BEST.binary("pow", a, b)
    assert got.view(np.uint32).tolist() == bits(want)


def _c_pow(x: float, y: float) -> float:
    return float(np.float32(np.power(np.float64(x), np.float64(y))))


def test_gradients_multiply_by_the_rounded_derivative() -> None:
    """NUM-52: dy times d; tanh and sigmoid from their output."""
    dy, x = numbers(8, 1001, 3.0), numbers(9, 1001, 6.0)
    for name in ("silu", "gelu", "gelu_tanh", "softplus", "log_sigmoid", "mish"):
        want = dy * BEST.unary(f"{name}_derivative", x)
        assert same_bits(BEST.binary(f"{name}_grad", dy, x), want)
    one = np.float32(1)
    assert same_bits(BEST.binary("tanh_grad", dy, x), dy * (one - x * x))
    assert same_bits(BEST.binary("sigmoid_grad", dy, x), (dy * (one - x)) * x)


@pytest.mark.parametrize("p", [1.0, -0.1, 0.75])
def test_every_operation_of_the_elementwise_formulas_is_rounded(p: float) -> None:
    """NUM-54, NUM-55: add with alpha, addcmul, addcdiv and lerp."""
    a, b, c = (numbers(seed, 1001, 3.0) for seed in (10, 11, 12))
    s, one = np.float32(p), np.float32(1)
    assert same_bits(BEST.binary("add_scaled", a, b, p), a + s * b)
    assert same_bits(BEST.ternary(0, a, b, c, p), a + (s * b) * c)
    assert same_bits(BEST.ternary(1, a, b, c, p), a + (s * b) / c)
    lerp = a + s * (b - a) if abs(p) < 0.5 else b - (b - a) * (one - s)
    assert same_bits(BEST.binary("lerp", a, b, p), lerp)


# ---- storage formats


VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "numerics_formats.json"


def as_float32(name: str) -> np.ndarray:
    """The value of every code of a small format, from the golden vectors."""
    codes = json.loads(VECTORS.read_text())[name]
    return np.array([int(code, 16) for code in codes], np.uint32).view(np.float32)


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e2m1"])
def test_every_code_of_a_small_format_has_its_value(name: str) -> None:
    """NUM-57: widening is exact."""
    want = as_float32(name)
    got = BEST.widen(name, np.arange(want.size, dtype=np.uint8))
    assert got.view(np.uint32).tolist() == bits(want)


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e2m1"])
def test_narrowing_takes_the_nearest_code_and_the_even_one_of_two(name: str) -> None:
    """NUM-57: rounds to nearest, ties to even, once."""
    values = as_float32(name)
    half = values[: values.size // 2].astype(np.float64)
    finite = half[np.isfinite(half)]
    x = np.concatenate([finite, (finite[1:] + finite[:-1]) / 2]).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(9e9)), np.nextafter(x, np.float32(-1))])
    x = np.concatenate([x, numbers(13, 2000, float(finite[-1]))])
    x = x[np.abs(x) <= finite[-1]]
    codes = BEST.narrow(name, x)
    for value, code in zip(x.astype(np.float64), codes, strict=True):
        away = np.abs(finite - abs(value))
        nearest = np.flatnonzero(away == away.min())
        want = int(nearest[0] if nearest.size == 1 else nearest[nearest % 2 == 0][0])
        assert code == want + (values.size // 2 if np.signbit(value) else 0), value


def test_beyond_the_largest_number_each_format_has_its_own_end() -> None:
    """NUM-57: infinity in bf16, f16 and e5m2, NaN in e4m3, 6 in e2m1."""
    x = np.float32([3.4e38, 1e38, 465.0, 464.0, 61440.0, 5.1, 7.0, np.inf, -np.inf, np.nan])
    assert BEST.narrow("e4m3", x).tolist()[1:5] == [0x7F, 0x7F, 0x7E, 0x7F]
    assert BEST.narrow("e4m3", x).tolist()[7:] == [0x7F, 0xFF, 0x7F]
    assert BEST.narrow("e5m2", x).tolist()[4:] == [0x7C, 0x45, 0x47, 0x7C, 0xFC, 0x7F]
    assert BEST.narrow("e2m1", x).tolist()[5:] == [7, 7, 7, 15, 7]
    assert BEST.narrow("bf16", x).tolist()[7:] == [0x7F80, 0xFF80, 0x7FC0]
    assert BEST.narrow("f16", x).tolist()[7:] == [0x7C00, 0xFC00, 0x7E00]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_binary16_is_numpys() -> None:
    """NUM-4: operands widen exactly, results are rounded to nearest even."""
    codes = np.arange(65536, dtype=np.uint16)
    wide = codes.view(np.float16).astype(np.float32)
    assert BEST.widen("f16", codes).view(np.uint32).tolist() == bits(wide)
    finite = wide[np.isfinite(wide)]
    x = np.concatenate(
        [special_values(), np.nextafter(finite, np.float32(1e9)), finite * np.float32(1.0005)]
    )
    want = x.astype(np.float16).view(np.uint16).copy()
    want[np.isnan(x)] = 0x7E00
    assert BEST.narrow("f16", x).tolist() == want.tolist()


def test_bfloat16_is_the_high_half_rounded_to_even() -> None:
    """NUM-4, NUM-5."""
    x = np.concatenate([special_values(), numbers(14, 5000, 1e3)])
    words = x.view(np.uint32).astype(np.uint64)
    want = (words + 0x7FFF + (words >> 16 & 1)) >> 16
    want[np.isnan(x)] = 0x7FC0
    assert BEST.narrow("bf16", x).tolist() == want.tolist()


@pytest.mark.parametrize("other", ALL[1:], ids=repr)
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_instruction_set_converts_alike(name: str, other: Kernels) -> None:
    """NUM-4, NUM-57."""
    x = np.concatenate([special_values(), numbers(15, 5003, 500.0), numbers(16, 999, 1e-4)])
    assert same_bits(BEST.narrow(name, x), other.narrow(name, x))
    _, size = FORMATS[name]
    codes = np.arange(1 << size, dtype=np.uint16 if size == 16 else np.uint8)
    assert same_bits(BEST.widen(name, codes), other.widen(name, codes))


# ---- AdamW


@pytest.mark.parametrize("kernels", ALL, ids=repr)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("largest", [False, True])
def test_adamw_is_the_written_formula(
    kernels: Kernels, maximize: bool, decoupled: bool, largest: bool
) -> None:
    """NUM-80: p (1 - lr decay); lerp; v beta2 + ((1 - beta2) g) g; sqrt(v) / b + eps; addcdiv."""
    values = (0.99999, 0.01, 0.1, 0.999, 0.001, 3e-4 / 0.19, 0.0447, 1e-8)
    s = dict(zip(SCALARS, np.float32(values), strict=True))
    scalars = AdamW(*(float(v) for v in s.values()), maximize, decoupled)
    g, p = numbers(17, 1003, 2.0), numbers(18, 1003)
    m, v, most = (np.abs(numbers(seed, 1003)) for seed in (19, 20, 21))
    state = [a.copy() for a in (p, m, v, most)]
    kernels.call("adamw", ctypes.byref(scalars), g.size, g, *state[:3],
                 state[3] if largest else None)  # fmt: skip
    g = -g if maximize else g
    p, g = (p * s["decay"], g) if decoupled else (p, g + s["weight_decay"] * p)
    m = m + s["mean_weight"] * (g - m)
    v = v * s["beta2"] + (s["square_weight"] * g) * g
    most = np.maximum(most, v) if largest else most
    d = np.sqrt(most if largest else v) / s["bias2_sqrt"] + s["eps"]
    p = p + (-s["step_size"] * m) / d
    for got, want in zip(state, (p, m, v, most), strict=True):
        assert same_bits(got, want)
