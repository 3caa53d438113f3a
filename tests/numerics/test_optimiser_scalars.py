"""What an optimiser's step computes once, in binary64 (spec/numerics.md, section Optimisers)."""

from __future__ import annotations

import ctypes
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.numerics.kernels import AdamW, all_kernels
from tests.support.libm import printed_on_every_processor

KERNELS = all_kernels()[0]
BETAS = (0.4, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 0.9999)


def powers(base: float, n: int) -> list[float]:
    """base^0, base^1, ... base^(n - 1), of the kernels."""
    out = np.empty(n, np.float64)
    KERNELS.call("powers", n, ctypes.c_double(base), out)
    return [float(one) for one in out]


def scalars(lr: float, beta1: float, beta2: float, step: int) -> AdamW:
    """AdamW's scalars for step `step`, with a decay of 0.01 and an eps of 1e-8."""
    made = AdamW()
    numbers = map(ctypes.c_double, (lr, beta1, beta2, 0.01, 1e-8))
    KERNELS.call("adamw_scalars", *numbers, step, ctypes.byref(made))
    return made


def fma(a: float, b: float, c: float) -> float:
    return float(Fraction(a) * Fraction(b) + Fraction(c))


def product(x: tuple[float, float], y: tuple[float, float]) -> tuple[float, float]:
    (a, b), (c, d) = x, y
    p = a * c
    q = fma(a, d, fma(b, c, fma(a, c, -p)))
    h = p + q
    return h, q - (h - p)


def written_power(base: float, count: int) -> float:
    """The sequence of NUM-82, in rational numbers that are rounded."""
    result, square = (1.0, 0.0), (base, 0.0)
    for bit in reversed(f"{count:b}"):
        result = product(result, square) if bit == "1" else result
        square = product(square, square)
    return result[0]


@given(st.floats(0.0, 1.0), st.integers(0, 40))
def test_a_power_is_the_written_sequence(base, count):
    """NUM-82."""
    assert powers(base, count + 1)[count] == written_power(base, count)


@pytest.mark.parametrize("base", BETAS)
def test_a_power_is_the_written_sequence_for_many_steps(base):
    """NUM-82."""
    found = powers(base, 100_001)
    for count in (1, 2, 3, 17, 255, 256, 1000, 9999, 65_535, 65_536, 100_000):
        assert found[count] == written_power(base, count)


@pytest.mark.parametrize("base", BETAS)
def test_a_power_is_correctly_rounded_in_two_thousand_steps(base):
    """NUM-82: what the sequence is for. Below 2^-900 the pair's second number is cut off."""
    found, exact = powers(base, 2001), Fraction(1)
    for count in range(2001):
        assert found[count] == float(exact) or exact < Fraction(1, 2**900)
        exact *= Fraction(base)


@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.999), (0.4, 0.95), (0.99, 0.9999)])
def test_the_scalars_are_the_formula_of_torchs_loop(beta1, beta2):
    """NUM-80: Python's power is the C library's, and binary32 hides its last bit here."""
    for step in (*range(1, 3000), *range(3000, 200_000, 997)):
        for lr in (1e-3, 2e-4, 3.3e-5):
            made = scalars(lr, beta1, beta2, step)
            assert made.step_size == np.float32(lr / (1.0 - beta1**step))
            assert made.bias2_sqrt == np.float32((1.0 - beta2**step) ** 0.5)
    assert made.decay == np.float32(1.0 - 3.3e-5 * 0.01)
    assert (made.weight_decay, made.eps) == (np.float32(0.01), np.float32(1e-8))
    assert (made.mean_weight, made.beta2) == (np.float32(1.0 - beta1), np.float32(beta2))
    assert made.square_weight == np.float32(1.0 - beta2)


ALL_POWERS = """
import hashlib
from tests.numerics.test_optimiser_scalars import BETAS, powers
found = [power for beta in BETAS for power in powers(beta, 20_000)]
print(hashlib.sha256(" ".join(map(float.hex, found)).encode()).hexdigest())
"""


def test_no_bit_of_a_power_depends_on_the_processor():
    """NUM-82: Python's `**` in its place prints two hashes on an Intel processor."""
    assert len(printed_on_every_processor(ALL_POWERS)) == 1
