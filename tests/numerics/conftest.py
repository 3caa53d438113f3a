"""The portable kernels, for the tests that ask for them; PyTorch's own kernels after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kolm_build.numerics import portable


@pytest.fixture
def kernels() -> Iterator[None]:
    """Compute with the portable kernels until the test ends."""
    threads, isa = torch.get_num_threads(), portable.isa()
    portable.activate()
    try:
        yield
    finally:
        portable.set_isa(isa)
        portable.deactivate()
        torch.set_num_threads(threads)
