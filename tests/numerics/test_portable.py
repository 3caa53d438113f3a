"""Loading the portable kernels: what fits, what does not, and what the reader is told."""

from __future__ import annotations

import shutil

import pytest
import torch

from kolm_build.errors import MachineError
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


def test_a_missing_library_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(portable, "LIBRARY", tmp_path / "libkolm_missing.so")
    with pytest.raises(portable.KernelsMissingError, match="not built"):
        portable.load()


def test_a_library_that_is_none_does_not_fit(tmp_path, monkeypatch):
    broken = tmp_path / "libkolm_broken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(portable, "LIBRARY", broken)
    with pytest.raises(portable.KernelsMissingError, match="do not fit the installed PyTorch"):
        portable.load()


def test_sources_that_changed_after_the_build_are_found(tmp_path, monkeypatch, kernels):
    changed = tmp_path / "csrc"
    shutil.copytree(portable.SOURCES, changed)
    assert portable.sources_digest(changed) == torch.ops.kolm_portable.sources()
    with (changed / "gemm.cpp").open("a") as file:
        file.write("// another line\n")
    monkeypatch.setattr(portable, "SOURCES", changed)
    with pytest.raises(portable.KernelsMissingError, match="from other sources"):
        portable._check_sources()


def test_a_library_for_another_pytorch_is_found(monkeypatch, kernels):
    monkeypatch.setattr(torch, "__version__", "9.9.0+cpu")
    with pytest.raises(portable.KernelsMissingError, match="for another PyTorch") as error:
        portable._check_torch()
    assert error.value.expected == "9.9.0"
