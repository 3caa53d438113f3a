"""Fixtures of the kernels' tests: alone through ctypes, and as PyTorch's operators."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kolm_build.numerics import portable
from tests.numerics.testing_library import Library


@pytest.fixture(scope="session")
def library() -> Library:
    """The kernels of every instruction set; building them is the build's task, not a test's."""
    return Library()


@pytest.fixture
def kernels() -> Iterator[None]:
    """Compute with the portable kernels until the test ends; then PyTorch's own again."""
    threads, isa = torch.get_num_threads(), portable.isa()
    portable.activate()
    try:
        yield
    finally:
        portable.set_isa(isa)
        portable.deactivate()
        torch.set_num_threads(threads)
