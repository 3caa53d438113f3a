"""The accelerators of this machine, as values of its record."""

from __future__ import annotations

from typing import Any

from kolm_build.core.machine import Accelerator
from kolm_build.engine.nvml import read_devices


def probe_accelerators(library: Any | None = None) -> tuple[Accelerator, ...]:
    """The accelerators, in the driver's order; none where there is no driver.

    Args:
        library: NVML, or an object with its functions; opened where None.

    Raises:
        AcceleratorError: The driver's library is there, and one of its calls fails.
    """
    return tuple(
        Accelerator(
            name=device.name,
            architecture=device.architecture,
            driver=device.driver,
            memory_bytes=device.memory_bytes,
        )
        for device in read_devices(library)
    )
