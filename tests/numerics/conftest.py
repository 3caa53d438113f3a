"""Fixtures of the kernels' tests: alone through ctypes, and as PyTorch's operators."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch

from kolm_build.numerics import portable
from tests.numerics.testing_library import Library

M_PERTURB = -6
"""The setting of glibc that fills new memory; another C library has none."""


@pytest.fixture(scope="session", autouse=True)
def _written_memory() -> Iterator[None]:
    """NUM-125: new memory holds numbers near the largest one, which a result must not show."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", lambda _option, _value: None)
    set_option(M_PERTURB, 0x80)
    yield
    set_option(M_PERTURB, 0)


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
