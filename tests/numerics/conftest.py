"""Fixtures of the kernels' tests."""

import pytest

from tests.numerics.testing_library import Library


@pytest.fixture(scope="session")
def library() -> Library:
    """The kernels of every instruction set; building them is the build's task, not a test's."""
    return Library()
