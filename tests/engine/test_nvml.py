"""What NVML tells becomes the machine's record, and what it does not tell is an error."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from kolm_build.core.machine import Accelerator
from kolm_build.engine import nvml
from kolm_build.engine.accelerators import probe_accelerators
from kolm_build.engine.nvml import AcceleratorError, read_devices

CALLS = (
    "nvmlInit_v2", "nvmlDeviceGetCount_v2", "nvmlSystemGetDriverVersion",
    "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetName",
)  # fmt: skip


class FakeNvml:
    """NVML of a machine with two GPUs; the call named `broken` fails with status 999."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken
        self.open = 0

    def __getattr__(self, name: str) -> Any:
        if name == self.broken:
            return lambda *_: 999
        return lambda *arguments: self.answer(name, arguments)

    def answer(self, name: str, arguments: tuple[Any, ...]) -> int:
        """Fill the call's arguments as NVML does."""
        if name == "nvmlInit_v2":
            self.open += 1
        elif name == "nvmlShutdown":
            self.open -= 1
        elif name == "nvmlDeviceGetCount_v2":
            arguments[0]._obj.value = 2
        elif name == "nvmlSystemGetDriverVersion":
            arguments[0].value = b"580.1"
        elif name == "nvmlDeviceGetMemoryInfo":
            arguments[1]._obj.total = 80 << 30
        elif name == "nvmlDeviceGetCudaComputeCapability":
            arguments[1]._obj.value, arguments[2]._obj.value = 9, 0
        elif name == "nvmlDeviceGetName":
            arguments[1].value = b"NVIDIA H100"
        return 0


def test_every_gpu_is_recorded_with_name_architecture_driver_and_memory() -> None:
    expected = Accelerator(
        name="NVIDIA H100", architecture="sm_90", driver="580.1", memory_bytes=80 << 30
    )
    assert probe_accelerators(FakeNvml()) == (expected, expected)


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_fails_is_an_error_that_names_it(call: str) -> None:
    with pytest.raises(AcceleratorError) as caught:
        read_devices(FakeNvml(broken=call))
    assert call in str(caught.value)
    assert "999" in str(caught.value)


@pytest.mark.parametrize("call", CALLS[1:])
def test_the_library_is_closed_after_a_failure(call: str) -> None:
    library = FakeNvml(broken=call)
    with pytest.raises(AcceleratorError):
        read_devices(library)
    assert library.open == 0


def test_a_machine_without_a_driver_has_no_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(nvml.ctypes, "CDLL", absent)
    assert read_devices() == ()
