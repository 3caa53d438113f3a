"""What NVML tells becomes the machine's record, and what it does not tell is an error."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from kolm_build.core.machine import Accelerator
from kolm_build.engine import nvml
from kolm_build.engine.builder import SandboxBuilder
from kolm_build.engine.nvml import AcceleratorError, read_devices
from kolm_build.engine.probe import probe_machine
from kolm_build.store.local import LocalStore
from tests.engine.steps import code, derivation

CALLS = (
    "nvmlInit_v2", "nvmlDeviceGetCount_v2", "nvmlSystemGetDriverVersion",
    "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetName",
)  # fmt: skip


class FakeNvml:
    """NVML of a machine with two GPUs; the call named `broken` fails with `status`."""

    def __init__(self, broken: str = "", status: int = 999) -> None:
        self.broken = broken
        self.status = status
        self.open = 0

    def __getattr__(self, name: str) -> Any:
        if name == self.broken:
            return lambda *_: self.status
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
    assert read_devices(FakeNvml()) == (expected, expected)


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
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(nvml.ctypes, "CDLL", absent)
    assert read_devices() == ()


def test_the_loader_says_that_a_library_is_absent_in_the_words_that_are_looked_for() -> None:
    with pytest.raises(OSError, match=nvml._ABSENT):
        ctypes.CDLL("libkolm-nobody-has-this.so.1")


def test_a_library_that_cannot_be_loaded_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENG-15."""

    def broken(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: file too short")

    monkeypatch.setattr(nvml.ctypes, "CDLL", broken)
    with pytest.raises(AcceleratorError, match="file too short"):
        read_devices()


def test_a_driver_that_is_not_loaded_has_no_accelerators() -> None:
    """ENG-15."""
    assert read_devices(FakeNvml(broken="nvmlInit_v2", status=9)) == ()


def test_a_realisation_names_every_gpu(
    store: LocalStore, builder: SandboxBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENG-15."""
    monkeypatch.setattr(nvml, "open_library", FakeNvml)
    drv = derivation(code(store, tmp_path, "put('out', '1')"))
    made = builder.build(drv, drv, lambda _event: None)
    machine = made.circumstances["machine"]
    assert isinstance(machine, dict)
    gpu = {
        "name": "NVIDIA H100", "architecture": "sm_90", "driver": "580.1",
        "memory_bytes": 80 << 30,
    }  # fmt: skip
    assert machine["accelerators"] == [gpu, gpu]


def test_a_machine_without_nvml_records_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENG-15."""
    monkeypatch.setattr(nvml, "open_library", lambda: None)
    assert probe_machine()["accelerators"] == []


def test_a_driver_that_does_not_answer_ends_the_build_before_the_step_runs(
    store: LocalStore, builder: SandboxBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENG-15."""
    monkeypatch.setattr(nvml, "open_library", lambda: FakeNvml(broken="nvmlInit_v2"))
    drv = derivation(code(store, tmp_path, "put('out', '1')"))
    events: list[object] = []
    with pytest.raises(AcceleratorError, match="nvmlInit_v2"):
        builder.build(drv, drv, events.append)
    assert not events
