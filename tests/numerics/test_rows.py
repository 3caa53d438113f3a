"""Sums and rows keep the order of spec/numerics.md; the reference here is written from its text."""

import ctypes

import numpy as np
import pytest

from tests.numerics.kernels import Kernels, all_kernels, numbers, same_bits

ALL = all_kernels()
BEST = ALL[0]
NAN, INF = np.float32(np.nan), np.float32(np.inf)
LENGTHS = [0, 1, 2, 31, 63, 64, 65, 127, 768, 4095, 4096, 4097, 9001]
each = pytest.mark.parametrize("kernels", ALL, ids=repr)


def reference_sum(v: np.ndarray) -> np.float32:
    """SUM of NUM-20, lane by lane."""
    sums = [block_sum(v[start : start + 4096]) for start in range(0, max(len(v), 1), 4096)]
    return sums[0] if len(sums) == 1 else reference_sum(np.array(sums, np.float32))


def block_sum(v: np.ndarray) -> np.float32:
    lanes = np.zeros(64, np.float32)
    for start in range(0, len(v), 64):
        part = v[start : start + 64]
        lanes[: len(part)] += part
    for w in (32, 16, 8, 4, 2, 1):
        lanes[:w] += lanes[w : 2 * w]
    return lanes[0]


def exp(x: np.ndarray) -> np.ndarray:
    return BEST.unary("exp", np.ascontiguousarray(x, np.float32))


def log(x: np.float32) -> np.float32:
    return BEST.unary("log", np.array([x], np.float32))[0]


@each
@pytest.mark.parametrize("n", LENGTHS)
def test_a_sum_adds_in_64_lanes_and_a_tree(kernels: Kernels, n: int) -> None:
    """NUM-20, NUM-22: in a block of 4096 lane l of 64 adds v[l], v[l + 64]."""
    x, y = numbers(1, n, 3.0), numbers(2, n, 3.0)
    centre = np.float32(0.3)
    terms = {
        "value": x,
        "square": x * x,
        "magnitude": np.abs(x),
        "product": x * y,
        "centred_square": (x - centre) * (x - centre),
        "exp_shifted": exp(x - centre),
    }
    for name, term in terms.items():
        assert kernels.sum(name, x, y, 0.3) == reference_sum(term), name


@each
def test_the_sums_of_blocks_are_a_sum_again(kernels: Kernels) -> None:
    """NUM-20: the blocks' sums are a SUM again, until one is left."""
    x = np.tile(numbers(3, 65537), 257)[: 4096 * 4096 + 70]
    padded = np.zeros((4098, 64, 64), np.float32)
    padded.ravel()[: x.size] = x
    lanes = np.zeros((4098, 64), np.float32)
    for step in range(64):
        lanes += padded[:, step]
    for w in (32, 16, 8, 4, 2, 1):
        lanes[:, :w] += lanes[:, w : 2 * w]
    count = -(-x.size // 4096)
    assert kernels.sum("value", x) == reference_sum(lanes[:count, 0].copy())


def test_a_sum_is_never_minus_zero() -> None:
    """NUM-20: lanes start from +0."""
    for n in (1, 64, 5000):
        assert not np.signbit(BEST.sum("value", np.full(n, -0.0, np.float32)))


@each
@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 200, 4097])
@pytest.mark.parametrize("columns", [1, 3, 17, 64, 70])
def test_a_column_sum_is_the_sum_of_the_column(kernels: Kernels, rows: int, columns: int) -> None:
    """NUM-21: a sum over dimensions is SUM of their elements in order, whatever the layout."""
    for ld in (columns, columns + 5):
        x = numbers(4, rows * ld + 1)[: rows * ld].reshape(rows, ld)
        out = np.empty(columns, np.float32)
        kernels.call("column_sums", rows, columns, x, ld, out)
        want = [reference_sum(x[:, c]) for c in range(0, columns, 7)]
        assert out[::7].tolist() == want


@each
def test_the_gradient_of_a_gain_is_a_column_sum(kernels: Kernels) -> None:
    """NUM-34: gain: SUM over rows of dy u."""
    rows, columns = 150, 81
    dy, x = (numbers(s, rows * columns).reshape(rows, columns) for s in (5, 6))
    mean, rstd = numbers(7, rows), numbers(8, rows)
    out = np.empty(columns, np.float32)
    kernels.call("column_sums_centred", rows, columns, dy, columns, x, columns, mean, rstd, out)
    terms = dy * ((x - mean[:, None]) * rstd[:, None])
    assert out.tolist() == [reference_sum(terms[:, c]) for c in range(columns)]


@each
@pytest.mark.parametrize("n", LENGTHS[1:])
def test_softmax_and_its_gradient(kernels: Kernels, n: int) -> None:
    """NUM-30, NUM-32: m = max x, e = exp(x - m), y = e (1 / SUM(e)); (dy - SUM(dy y)) y."""
    x, dy = numbers(9, n, 9.0), numbers(10, n)
    y, dx = np.empty_like(x), np.empty_like(x)
    kernels.call("softmax", n, x, y)
    e = exp(x - x.max())
    assert same_bits(y, e * (np.float32(1) / reference_sum(e)))
    kernels.call("softmax_grad", n, dy, y, dx)
    assert same_bits(dx, (dy - reference_sum(dy * y)) * y)


@each
@pytest.mark.parametrize("n", LENGTHS[1:])
def test_log_softmax_its_gradient_and_logsumexp(kernels: Kernels, n: int) -> None:
    """NUM-31, NUM-32, NUM-33: (x - m) - log(SUM(exp(x - m))); dy - exp(y) SUM(dy); m + log."""
    x, dy = numbers(11, n, 9.0), numbers(12, n)
    y, dx = np.empty_like(x), np.empty_like(x)
    m = x.max()
    shift = log(reference_sum(exp(x - m)))
    kernels.call("log_softmax", n, x, y)
    assert same_bits(y, (x - m) - shift)
    kernels.call("log_softmax_grad", n, dy, y, dx)
    assert same_bits(dx, dy - exp(y) * reference_sum(dy))
    assert kernels.call("log_sum_exp", n, x, returns=ctypes.c_float) == m + shift


@each
def test_rows_of_infinities_and_nan(kernels: Kernels) -> None:
    """NUM-25, NUM-30, NUM-33: NaN wins; a row of -inf alone gives NaN; m where m is infinite."""

    def softmax(*values: float) -> list[float]:
        x = np.float32(values)
        y = np.empty_like(x)
        kernels.call("softmax", x.size, x, y)
        assert all(b == 0x7FC00000 for b in y[np.isnan(y)].view(np.uint32))
        return y.tolist()

    def log_sum_exp(*values: float) -> float:
        return float(
            kernels.call("log_sum_exp", len(values), np.float32(values), returns=ctypes.c_float)
        )

    assert np.isnan(softmax(-INF, -INF)).all()
    assert np.isnan(softmax(NAN, 1.0, INF)).all()
    assert softmax(-INF, 0.0, -INF) == [0.0, 1.0, 0.0]
    assert softmax(-0.0, 0.0) == [0.5, 0.5]
    assert log_sum_exp(-INF, -INF) == -INF
    assert log_sum_exp(1.0, INF) == INF
    assert np.isnan(log_sum_exp(1.0, NAN))


@each
@pytest.mark.parametrize("n", [1, 64, 100, 768, 5000])
@pytest.mark.parametrize("plain", [False, True])
def test_layer_norm_and_its_gradient(kernels: Kernels, n: int, plain: bool) -> None:
    """NUM-34: mean, var with n; r = 1 / sqrt(var + eps); ((x - mean) r) gain + bias."""
    x, dy, gain, bias = (numbers(s, n, 2.0) for s in (13, 14, 15, 16))
    count, eps, one = np.float32(n), np.float32(1e-5), np.float32(1)
    y, dx, moments = np.empty_like(x), np.empty_like(x), np.empty(2, np.float32)
    kernels.call(
        "layer_norm", n, x, None if plain else gain, None if plain else bias, 1e-5, y, moments
    )
    mean = reference_sum(x) / count
    r = one / np.sqrt(reference_sum((x - mean) * (x - mean)) / count + eps)
    u = (x - mean) * r
    assert moments.tolist() == [mean, r]
    assert same_bits(y, u if plain else u * gain + bias)
    kernels.call("layer_norm_grad", n, dy, x, None if plain else gain, float(mean), float(r), dx)
    h = dy if plain else dy * gain
    a, c = reference_sum(h) / count, reference_sum(h * u) / count
    assert same_bits(dx, r * ((h - a) - u * c))


@each
@pytest.mark.parametrize("n", [1, 64, 100, 768, 5000])
@pytest.mark.parametrize("plain", [False, True])
def test_rms_norm_and_its_gradient(kernels: Kernels, n: int, plain: bool) -> None:
    """NUM-35: r = 1 / sqrt(SUM(x x) / n + eps); (x r) gain; r (h - u c)."""
    x, dy, gain = (numbers(s, n, 2.0) for s in (17, 18, 19))
    count, one = np.float32(n), np.float32(1)
    y, dx, rstd = np.empty_like(x), np.empty_like(x), np.empty(1, np.float32)
    kernels.call("rms_norm", n, x, None if plain else gain, 1e-6, y, rstd)
    r = one / np.sqrt(reference_sum(x * x) / count + np.float32(1e-6))
    assert rstd[0] == r
    assert same_bits(y, x * r if plain else (x * r) * gain)
    kernels.call("rms_norm_grad", n, dy, x, None if plain else gain, float(r), dx)
    h, u = dy if plain else dy * gain, x * r
    assert same_bits(dx, r * (h - u * (reference_sum(h * u) / count)))


@each
def test_a_cumulative_sum_adds_in_ascending_order(kernels: Kernels) -> None:
    """NUM-24: cumsum adds in ascending order from the first element."""
    x = numbers(20, 2000)
    y = np.zeros(1000, np.float32)
    kernels.call("cumulative_sum", 1000, x, 2, y, 1)
    total, want = np.float32(x[0]), [float(x[0])]
    for value in x[2::2]:
        total = np.float32(total + value)
        want.append(float(total))
    assert y.tolist() == want
