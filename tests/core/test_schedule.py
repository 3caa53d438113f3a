"""The learning rate's schedule is the same bits on every processor (spec/sft.md)."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp

from kolm_build.core.schedule import Schedule, raised_cosine
from tests.support.libm import printed_on_every_processor

KINDS = ("constant", "cosine", "linear")
GOLDEN = {
    "constant": (
        "0x0.0p+0 0x1.5555555555555p-2 0x1.5555555555555p-1 0x1.0000000000000p+0 "
        "0x1.0000000000000p+0 0x1.0000000000000p+0 0x1.0000000000000p+0 0x1.0000000000000p+0 "
        "0x1.0000000000000p+0 0x1.0000000000000p+0 0x1.0000000000000p+0"
    ),
    "cosine": (
        "0x0.0p+0 0x1.5555555555555p-2 0x1.5555555555555p-1 0x1.0000000000000p+0 "
        "0x1.e6a5e54e5ae38p-1 0x1.9f9d07145f6e9p-1 0x1.38f721c6048b0p-1 0x1.8e11bc73f6e9fp-2 "
        "0x1.818be3ae8245dp-3 0x1.95a1ab1a51c79p-5 0x0.0p+0"
    ),
    "linear": (
        "0x0.0p+0 0x1.5555555555555p-2 0x1.5555555555555p-1 0x1.0000000000000p+0 "
        "0x1.b6db6db6db6dbp-1 0x1.6db6db6db6db7p-1 0x1.2492492492492p-1 0x1.b6db6db6db6dbp-2 "
        "0x1.2492492492492p-2 0x1.2492492492492p-3 0x0.0p+0"
    ),
}


def factors(kind: str, *, warmup_steps: int, steps: int) -> list[float]:
    schedule = Schedule(kind=kind, warmup_steps=warmup_steps, steps=steps)
    return [schedule.factor(step) for step in range(steps + 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_schedule_has_these_bits(kind):
    """SFT-13."""
    assert [one.hex() for one in factors(kind, warmup_steps=3, steps=10)] == GOLDEN[kind].split()


@given(st.integers(1, 2**31), st.data())
def test_a_cosine_is_correctly_rounded(whole, data):
    """SFT-13: mpmath's cosine in 400 bits is the oracle."""
    part = data.draw(st.integers(0, whole - 1))
    with mp.workprec(400):
        wanted = float((1 + mp.cos(mp.pi * part / whole)) / 2)
    assert raised_cosine(part, whole) == wanted


def test_a_cosine_that_is_rational_is_exact():
    """SFT-13: no other point of the schedule is."""
    found = [raised_cosine(part, 6_000_000) for part in range(0, 5_000_000, 1_000_000)]
    assert [found[0], found[2], found[3], found[4]] == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(("warmup_steps", "steps"), [(0, 1), (0, 7), (5, 313), (9, 9), (20, 10)])
def test_a_schedule_is_the_usual_one_but_for_its_last_bit(warmup_steps, steps):
    """SFT-13: what transformers computes, with the C library's cosine."""
    for step in range(steps):
        part, whole = step - warmup_steps, max(1, steps - warmup_steps)
        rise = step / max(1, warmup_steps)
        usual = {
            "constant": 1.0,
            "linear": (steps - step) / whole,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * (part / whole))),
        }
        for kind in KINDS:
            factor = Schedule(kind=kind, warmup_steps=warmup_steps, steps=steps).factor(step)
            if step < warmup_steps or kind != "cosine":
                assert factor == (rise if step < warmup_steps else usual[kind])
            else:
                assert abs(factor - usual[kind]) <= 2**-51


ALL_FACTORS = """
import hashlib
from kolm_build.core.schedule import Schedule
found = [Schedule(kind=kind, warmup_steps=27, steps=10000).factor(step)
         for kind in ("constant", "cosine", "linear") for step in range(10001)]
print(hashlib.sha256(" ".join(map(float.hex, found)).encode()).hexdigest())
"""


def test_no_bit_of_a_schedule_depends_on_the_processor():
    """SFT-13: the same program asking `math.cos` prints two hashes on an Intel processor."""
    assert len(printed_on_every_processor(ALL_FACTORS)) == 1
