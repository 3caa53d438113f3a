"""The largest magnitudes, found with integers; MERGE-7."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kolm_build.steps.merging.selection import count_of, largest
from tests.merging.groups import arithmetic
from tests.merging.references import top

pytestmark = pytest.mark.usefixtures("portable")

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
FEW = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e38])


@settings(max_examples=60)
@given(
    values=st.lists(FLOATS | FEW, min_size=1, max_size=50), share=st.fractions(0, Fraction(11, 10))
)
def test_as_many_are_taken_as_asked_for_and_of_equals_the_first(values, share):
    """MERGE-7: both zeros, subnormals and ties among them."""
    count = int(share * len(values))
    array = np.array(values, np.float32)
    with arithmetic():
        found = largest(torch.from_numpy(array), count).numpy()
    assert found.sum() == min(count, len(values))
    np.testing.assert_array_equal(found, top(array, count))


@pytest.mark.parametrize("count", [0, 1, 777, 50_000, 99_999, 100_000, 100_001])
def test_many_elements_with_many_ties(count):
    """MERGE-7: bfloat16 numbers have few magnitudes."""
    random = np.random.default_rng(0)
    values = torch.from_numpy(random.standard_normal((100, 1000)).astype(np.float32))
    values = values.bfloat16().float()
    with arithmetic():
        found = largest(values, count).numpy()
    np.testing.assert_array_equal(found, top(values.numpy(), count))


@pytest.mark.parametrize(
    ("share", "elements", "wanted"),
    [("0.29", 100, 29), ("0.2", 4, 1), ("0.01", 4, 1), ("0.5", 0, 0), ("1", 7, 7), ("0", 7, 0)],
)
def test_a_share_is_rounded_down_exactly_but_never_to_nothing(share, elements, wanted):
    """MERGE-7: 0.29 of 100 is 29; in binary64 it would be 28."""
    assert count_of(Fraction(share), elements) == wanted
