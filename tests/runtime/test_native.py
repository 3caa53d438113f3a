"""The class native-1 sets every switch, and a class without floating point is refused."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

from kolm_build.core.numerics import Numerics
from kolm_build.errors import InvalidRecordError, MachineError
from kolm_build.numerics import native
from kolm_build.numerics.apply import applied


def draws() -> tuple:
    return random.getrandbits(64), np.random.rand(), torch.rand(()).item()


def test_every_switch_is_set():
    """NAT-1, NAT-2."""
    native.apply(Numerics(cls="native-1", threads=1))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.mkldnn.deterministic
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cudnn.benchmark
    assert torch.get_num_threads() == 1
    assert torch.get_num_interop_threads() == 1


def test_every_generator_is_seeded():
    """NAT-3."""
    native.apply(Numerics(cls="native-1", seed=11))
    first = draws()
    native.apply(Numerics(cls="native-1", seed=11))
    assert draws() == first
    native.apply(Numerics(cls="native-1", seed=12))
    assert all(one != other for one, other in zip(draws(), first, strict=True))


def test_a_seed_that_numpy_cannot_take_is_refused():
    """NAT-3."""
    native.seed(native.MAX_SEED)
    with pytest.raises(InvalidRecordError, match="seed"):
        native.apply(Numerics(cls="native-1", seed=native.MAX_SEED + 1))


def test_the_exact_class_has_no_floating_point():
    """NAT-4."""
    numerics = Numerics(cls="exact-1")
    with pytest.raises(InvalidRecordError, match="floating point"), applied(numerics):
        pytest.fail("nothing may be computed")


def test_the_door_of_all_classes_applies_the_native_one():
    """NAT-2, NAT-3."""
    with applied(Numerics(cls="native-1", seed=11, threads=2)):
        first = draws()
        assert torch.get_num_threads() == 2
    with applied(Numerics(cls="native-1", seed=11, threads=1)):
        assert draws() == first


class Switches:
    """A stand-in for `torch.backends.cuda` of a machine with a GPU."""

    def __init__(self) -> None:
        self.matmul = torch.backends.cuda.matmul
        self.on = {"flash": True, "mem_efficient": True, "cudnn": True, "math": False}

    def __getattr__(self, name: str):
        if name.endswith("_sdp_enabled"):
            return lambda: self.on[name.removesuffix("_sdp_enabled")]
        kind = name.removeprefix("enable_").removesuffix("_sdp")
        return lambda enabled: self.on.update({kind: enabled})


@pytest.fixture
def a_gpu(monkeypatch):
    """A torch that sees a GPU, with the environment that the engine makes."""
    cuda = Switches()
    monkeypatch.setattr(torch.backends, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(native.WORKSPACE, ":4096:8")
    return cuda


TURNED_BACK = {
    "deterministic_algorithms": lambda: torch.use_deterministic_algorithms(mode=False),
    "float32_matmul_precision": lambda: torch.set_float32_matmul_precision("medium"),
    "cudnn_benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "cudnn_tf32": lambda: setattr(torch.backends.cudnn, "allow_tf32", True),
    "cudnn_deterministic": lambda: setattr(torch.backends.cudnn, "deterministic", False),
    "matmul_fp16_reduction": lambda: setattr(
        torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", True
    ),
    "matmul_bf16_reduction": lambda: setattr(
        torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", True
    ),
}


@pytest.mark.parametrize("name", TURNED_BACK)
def test_a_switch_that_was_turned_back_is_refused_by_name(name):
    """NAT-1, NAT-8."""
    native.set_switches()
    native.check_switches()
    TURNED_BACK[name]()
    try:
        with pytest.raises(MachineError, match=name):
            native.check_switches()
    finally:
        native.set_switches()
    native.check_switches()


@pytest.mark.parametrize("kind", ["flash", "mem_efficient", "cudnn", "math"])
def test_on_a_gpu_the_choice_of_attention_is_a_switch(a_gpu, kind):
    """NAT-7, NAT-8."""
    native.set_switches()
    native.check_switches()
    a_gpu.on[kind] = not a_gpu.on[kind]
    with pytest.raises(MachineError, match=f"sdp_{kind}"):
        native.check_switches()


@pytest.mark.parametrize("value", [None, ":16:8", ""])
def test_on_a_gpu_another_workspace_of_cublas_is_refused(a_gpu, monkeypatch, value):
    """NAT-7, NAT-8."""
    if value is None:
        monkeypatch.delenv(native.WORKSPACE)
    else:
        monkeypatch.setenv(native.WORKSPACE, value)
    with pytest.raises(MachineError, match="CUBLAS_WORKSPACE_CONFIG"):
        native.apply(Numerics(cls="native-1", threads=1))


def test_without_a_gpu_the_environment_is_not_asked(monkeypatch):
    """NAT-7."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv(native.WORKSPACE, raising=False)
    native.apply(Numerics(cls="native-1", threads=1))
    assert native.WORKSPACE not in os.environ
