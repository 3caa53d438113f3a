"""The built kernels that `tools/device_check.py` loads, of a CPU and of a GPU."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILT = ROOT / "build" / "device"
LIBRARIES = ("libkolm_portable.so", "libkolm_portable_cuda.so")


def library(name: str) -> Path | None:
    """Where a built library lies, or None."""
    places = (BUILT, BUILT / "kolm_build/numerics/csrc/cuda", ROOT / "kolm_build/numerics")
    return next((place / name for place in places if (place / name).is_file()), None)


def load(device: str, *, poison: bool = False) -> None:
    """Compute with the portable kernels: on the CPU always, on the GPU where `device` is one.

    Args:
        device: cpu, cuda or emulated.
        poison: Fill new memory with NaN, so that what a kernel forgets to write shows.
    """
    import torch

    names = ["libkolm_portable_emulated.so" if device == "emulated" else "libkolm_portable.so"]
    if device == "cuda":
        names.append("libkolm_portable_cuda.so")
    for name in names:
        path = library(name)
        if path is None and device == "cuda" and name == "libkolm_portable.so":
            print("the CPU's kernels are not built: the CPU part of the work is stock", flush=True)
            continue
        if path is None:
            raise SystemExit(f"{name} is not built")
        torch.ops.load_library(str(path))
    torch.use_deterministic_algorithms(mode=True)
    torch.utils.deterministic.fill_uninitialized_memory = poison
    torch.backends.cuda.matmul.allow_tf32 = False
    for namespace in ("kolm_portable", "kolm_portable_cuda"):
        if hasattr(torch.ops, namespace) and hasattr(getattr(torch.ops, namespace), "enable"):
            getattr(torch.ops, namespace).enable()
