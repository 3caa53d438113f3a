"""NVML, the library of NVIDIA's driver: what GPUs there are.

Read through ctypes: a few calls, so that no package is needed where there is no GPU.
"""

from __future__ import annotations

import ctypes
from typing import Any

from kolm_build.core.machine import Accelerator
from kolm_build.errors import MachineError

LIBRARY = "libnvidia-ml.so.1"
_SUCCESS = 0
_DRIVER_NOT_LOADED = 9
_ABSENT = "cannot open shared object file: No such file or directory"
_TEXT_BYTES = 96


class _Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class AcceleratorError(MachineError):
    """NVML is there and does not answer: what the machine has is not known."""

    code = "machine.accelerator-unreadable"


def open_library() -> Any | None:
    """NVML, or None where this machine has no NVIDIA driver.

    Raises:
        AcceleratorError: It is there and cannot be loaded.
    """
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        if _ABSENT in str(error):
            return None
        raise _unreadable(LIBRARY, "a library that can be loaded", str(error)) from error


def read_devices(library: Any | None = None) -> tuple[Accelerator, ...]:
    """The GPUs, in NVML's order; none where there is no driver, or it is not loaded.

    Args:
        library: NVML, or an object with its functions; opened where None.

    Raises:
        AcceleratorError: NVML is there, and one of its calls fails.
    """
    library = open_library() if library is None else library
    if library is None:
        return ()
    if not _initialised(library):
        return ()
    try:
        return _devices(library)
    finally:
        library.nvmlShutdown()


def _initialised(library: Any) -> bool:
    """False where the driver is installed and not loaded: then no GPU can compute."""
    status = library.nvmlInit_v2()
    if status != _DRIVER_NOT_LOADED:
        _require(status, "nvmlInit_v2")
    return bool(status == _SUCCESS)


def _devices(library: Any) -> tuple[Accelerator, ...]:
    count = ctypes.c_uint()
    _call(library, "nvmlDeviceGetCount_v2", ctypes.byref(count))
    driver = _text(library, "nvmlSystemGetDriverVersion")
    return tuple(_device(library, index, driver) for index in range(count.value))


def _device(library: Any, index: int, driver: str) -> Accelerator:
    device = ctypes.c_void_p()
    _call(library, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
    memory, major, minor = _Memory(), ctypes.c_int(), ctypes.c_int()
    _call(library, "nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
    _call(
        library, "nvmlDeviceGetCudaComputeCapability", device,
        ctypes.byref(major), ctypes.byref(minor),
    )  # fmt: skip
    return Accelerator(
        name=_text(library, "nvmlDeviceGetName", device),
        architecture=f"sm_{major.value}{minor.value}",
        driver=driver,
        memory_bytes=memory.total,
    )


def _text(library: Any, function: str, *arguments: Any) -> str:
    buffer = ctypes.create_string_buffer(_TEXT_BYTES)
    _call(library, function, *arguments, buffer, ctypes.c_uint(_TEXT_BYTES))
    return buffer.value.decode("utf-8", "replace")


def _call(library: Any, function: str, *arguments: Any) -> None:
    _require(getattr(library, function)(*arguments), function)


def _require(status: int, function: str) -> None:
    if status != _SUCCESS:
        raise _unreadable(f"{LIBRARY}: {function}", "status 0", f"status {status}")


def _unreadable(where: str, expected: str, actual: str) -> AcceleratorError:
    return AcceleratorError(
        "the driver's library does not tell what accelerators there are",
        where=where,
        expected=expected,
        actual=actual,
        advice="Check the driver with nvidia-smi; without it, no machine can be recorded.",
    )
