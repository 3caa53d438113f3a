"""The numerics class `portable-1`: PyTorch's CPU operators computed by the kernels of this package.

`activate` loads `libkolm_portable.so` and puts its kernels over ATen's for this process
(spec/numerics.md). Nothing else changes: unmodified models and trainers run on them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from kolm_build.errors import BuildError, MachineError

LIBRARY = Path(__file__).parent / "libkolm_portable.so"
SOURCES = Path(__file__).parent / "csrc"
REFUSAL = "kolm portable-1: "
"""What the message of every refusal of a kernel begins with."""


class KernelsMissingError(MachineError):
    """The portable kernels cannot be loaded: not built, or built for something else."""

    code = "machine.no-portable-kernels"


class PackedWeightError(BuildError):
    """A weight changed while its packed copy was in use: what was computed may be of either."""

    code = "build.packed-weight-changed"


def activate(*, isa: str | None = None) -> None:
    """Compute with the portable kernels from now on, in the whole process.

    Calling it again changes nothing, but for `isa`.

    Args:
        isa: The instruction set to compute with, one of `isas()`; the machine's best if None.
            It changes no bit of any result.

    Raises:
        KernelsMissingError: The library is missing, or does not fit PyTorch or its sources.
        MachineError: The machine has no such instruction set.
    """
    load()
    torch.ops.kolm_portable.enable()
    if isa is not None:
        set_isa(isa)
    torch.use_deterministic_algorithms(True)  # noqa: FBT003 -- torch's own signature
    # Every certified operator writes all it allocates: filling it first would only cost time.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.set_flush_denormal(False)


def deactivate() -> None:
    """Give PyTorch's own kernels back: for tests and benchmarks that compare both."""
    load()
    torch.ops.kolm_portable.disable()
    torch.use_deterministic_algorithms(False)  # noqa: FBT003


def is_active() -> bool:
    """Whether the portable kernels compute in this process."""
    return _is_loaded() and bool(torch.ops.kolm_portable.is_enabled())


def isa() -> str:
    """The instruction set that computes."""
    load()
    return str(torch.ops.kolm_portable.isa())


def isas() -> tuple[str, ...]:
    """The instruction sets that the library has and this machine can run, best first."""
    load()
    return tuple(torch.ops.kolm_portable.isas())


def set_isa(name: str) -> None:
    """Compute with another instruction set. No result changes.

    Raises:
        MachineError: The machine or the library has no such instruction set.
    """
    if name not in isas():
        raise MachineError(
            "no portable kernels for this instruction set",
            expected=" or ".join(isas()),
            actual=name,
        )
    torch.ops.kolm_portable.set_isa(name)


def operators() -> tuple[str, ...]:
    """The ATen operators, overloads spelled out, that the portable kernels compute now."""
    load()
    return tuple(sorted(torch.ops.kolm_portable.operators()))


@contextmanager
def packed_weights(model: torch.nn.Module) -> Iterator[None]:
    """Within the block, the weights of `model`'s linear layers are used in packed form.

    For reading one token after another with weights that do not change: each is packed once, not
    once a token. Packing changes no bit. A weight that an operator changes is read anew; one that
    is changed behind PyTorch's back is found when the block ends.

    Raises:
        PackedWeightError: A weight's packed copy is no longer what packing it would give.
    """
    load()
    weights = _weights_of_linear_layers(model)
    try:
        for weight in weights.values():
            torch.ops.kolm_portable.pack_weight(weight)
        yield
        _check_packed(weights)
    finally:
        torch.ops.kolm_portable.forget_packed_weights()


def load() -> None:
    """Load the library that is next to this file, once.

    Raises:
        KernelsMissingError: It is missing, or was built for another PyTorch or other sources.
    """
    if _is_loaded():
        return
    if not LIBRARY.is_file():
        raise KernelsMissingError(
            "the portable kernels are not built",
            file=LIBRARY.name,
            advice="Reinstall kolm-build; in a checkout, `make kernels` builds them.",
        )
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        raise KernelsMissingError(
            "the portable kernels do not fit the installed PyTorch",
            file=LIBRARY.name,
            actual=str(error),
            advice=f"Build them again with torch {torch.__version__}.",
        ) from error
    _check_torch()
    _check_sources()


def sources_digest(directory: Path) -> str:
    """SHA-256 of the lines "<sha256>  <name>" of the C++ files in `directory`, in name order."""
    files = sorted((*directory.glob("*.cpp"), *directory.glob("*.h")), key=lambda f: f.name)
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _is_loaded() -> bool:
    return any(Path(path).name == LIBRARY.name for path in torch.ops.loaded_libraries)


def _check_torch() -> None:
    built_for = str(torch.ops.kolm_portable.torch_version())
    installed = torch.__version__.split("+")[0]
    if built_for != installed:
        raise KernelsMissingError(
            "the portable kernels were built for another PyTorch",
            file=LIBRARY.name,
            expected=installed,
            actual=built_for,
            advice="Build them again: `make kernels`.",
        )


def _check_sources() -> None:
    if not SOURCES.is_dir():
        return
    on_disk = sources_digest(SOURCES)
    built_from = str(torch.ops.kolm_portable.sources())
    if built_from != on_disk:
        raise KernelsMissingError(
            "the portable kernels were built from other sources",
            file=LIBRARY.name,
            expected=on_disk,
            actual=built_from,
            advice="Build them again: `make kernels`.",
        )


def _weights_of_linear_layers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def _check_packed(weights: dict[str, torch.Tensor]) -> None:
    for name, weight in weights.items():
        if not torch.ops.kolm_portable.is_packed_as_is(weight):
            raise PackedWeightError(
                "a weight changed while its packed copy was in use",
                where=name,
                advice="Change weights outside packed_weights.",
            )
