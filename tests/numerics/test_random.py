"""Random numbers are a function of (seed, stream, element) alone (spec/numerics.md)."""

import ctypes

import numpy as np
import pytest

from tests.numerics.kernels import Kernels, all_kernels, same_bits

ALL = all_kernels()
BEST = ALL[0]
SEED, STREAM = 0x0123456789ABCDEF, 0xFEDCBA9876543210
each = pytest.mark.parametrize("kernels", ALL, ids=repr)

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 as the paper has it."""
    a, b, c, d = counter
    k, j = key
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (
            (right >> 32) ^ b ^ k,
            right & 0xFFFFFFFF,
            (left >> 32) ^ d ^ j,
            left & 0xFFFFFFFF,
        )
        k, j = (k + 0x9E3779B9) & 0xFFFFFFFF, (j + 0xBB67AE85) & 0xFFFFFFFF
    return [a, b, c, d]


def words(seed: int, stream: int, first: int, n: int) -> np.ndarray:
    """NUM-60, written from its text."""
    out = []
    for i in range(first // 4, (first + n + 3) // 4):
        counter = [i & 0xFFFFFFFF, i >> 32, stream & 0xFFFFFFFF, stream >> 32]
        out += philox(counter, [seed & 0xFFFFFFFF, seed >> 32])
    return np.array(out[:n], np.uint32)


def test_the_reference_gives_the_known_answers() -> None:
    """NUM-60: Philox4x32-10."""
    for counter, key, result in KNOWN:
        assert philox(list(counter), list(key)) == list(result)


@each
def test_the_generator_gives_the_known_answer(kernels: Kernels) -> None:
    """NUM-60: where the element's number can reach the vector."""
    assert kernels.draw("words", 0, 0, 0, 4).tolist() == list(KNOWN[0][2])


@each
@pytest.mark.parametrize("first", [0, 4, 256, (1 << 34) - 8, (1 << 40)])
@pytest.mark.parametrize("n", [1, 3, 4, 255, 257])
def test_an_element_is_a_word_of_the_counter(kernels: Kernels, first: int, n: int) -> None:
    """NUM-60: element i of stream s of seed k is word i mod 4 of Philox4x32-10 at i / 4."""
    got = kernels.draw("words", SEED, STREAM, first, n)
    assert got.tolist() == words(SEED, STREAM, first, n).tolist()


@each
def test_call_shape_never_matters(kernels: Kernels) -> None:
    """NUM-61: parts of a stream are the whole."""
    for what, rest in (("uniform", (0.0, 1.0)), ("normal", (0.0, 1.0))):
        whole = kernels.draw(what, SEED, STREAM, 0, 1000, *rest)
        parts = [
            kernels.draw(what, SEED, STREAM, s, min(124, 1000 - s), *rest)
            for s in range(0, 1000, 124)
        ]
        assert same_bits(whole, np.concatenate(parts))


@each
def test_uniform_bernoulli_exponential_and_normal(kernels: Kernels) -> None:
    """NUM-63: each made from its words by the written operations."""
    f = np.float32
    n = 1001
    w = words(SEED, STREAM, 0, n + 1)
    low, high = f(-1.5), f(4.25)
    unit = (w >> 8).astype(f) * f(2**-24)
    assert same_bits(
        kernels.draw("uniform", SEED, STREAM, 0, n, -1.5, 4.25), (low + (high - low) * unit)[:n]
    )
    for p in (0.0, 0.1, 0.5, 1.0):
        drawn = kernels.draw("bernoulli", SEED, STREAM, 0, n, ctypes.c_double(p))
        assert drawn.tolist() == (w[:n] < int(p * 2**32)).astype(f).tolist()
    middle = ((w >> 9).astype(f) + f(0.5)) * f(2**-23)
    logs = BEST.unary("log", middle)
    drawn = kernels.draw("exponential", SEED, STREAM, 0, n, ctypes.c_double(1.7))
    assert same_bits(drawn, (-logs / f(1.7))[:n])
    radius = np.sqrt(f(-2) * logs[0::2])
    angle = np.ascontiguousarray(f(6.2831855) * unit[1::2])
    z = np.stack([radius * BEST.unary("cos", angle), radius * BEST.unary("sin", angle)], 1).ravel()
    drawn = kernels.draw("normal", SEED, STREAM, 0, n, 0.5, 0.02)
    assert same_bits(drawn, (f(0.5) + f(0.02) * z)[:n])


def test_the_draws_have_the_moments_they_should() -> None:
    """NUM-63: mean and variance of a million, four standard errors."""
    normal = BEST.draw("normal", 1, 2, 0, 1 << 20, 0.0, 1.0).astype(np.float64)
    uniform = BEST.draw("uniform", 1, 3, 0, 1 << 20, 0.0, 1.0).astype(np.float64)
    assert abs(normal.mean()) < 4 / 1024
    assert abs(normal.var() - 1) < 4 * 2**0.5 / 1024
    assert abs(uniform.mean() - 0.5) < 4 / (12**0.5 * 1024)
    assert uniform.min() >= 0.0
    assert uniform.max() < 1.0
