"""Loading the portable kernels: what fits, what does not, and what the reader is told."""

from __future__ import annotations

import pytest
import torch

from kolm_build.errors import KernelsMissingError, MachineError
from kolm_build.numerics import kernels as kernels_of
from kolm_build.numerics import portable


def test_activating_twice_is_activating_once(kernels):
    before = portable.operators()
    portable.activate()
    assert portable.is_active()
    assert portable.operators() == before
    assert {"mm", "addmm_", "sum.dim_IntList", "_fused_adamw_"} <= set(before)


def test_deactivating_gives_pytorchs_kernels_back(kernels):
    portable.deactivate()
    assert not portable.is_active()
    assert portable.operators() == ()
    assert torch.ones(2, 2, dtype=torch.float64).exp().dtype == torch.float64


def test_an_instruction_set_that_is_not_there_is_refused(kernels):
    with pytest.raises(MachineError) as error:
        portable.activate(isa="vax")
    assert error.value.actual == "vax"
    assert portable.isas()[0] in (error.value.expected or "")


def test_a_library_for_another_pytorch_is_found(monkeypatch, kernels):
    monkeypatch.setattr(torch, "__version__", "9.9.0+cpu")
    with pytest.raises(KernelsMissingError, match="for another PyTorch") as error:
        portable._check_torch(kernels_of.LIBRARY)
    assert error.value.expected == "9.9.0"
