"""The numerics class `portable-1`: PyTorch's CPU operators computed by the kernels of this package.

`activate` loads `libkolm_portable.so` and puts its kernels over ATen's for this process
(spec/numerics.md). Nothing else changes: unmodified models and trainers run on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from kolm_build.errors import KernelsMissingError, MachineError, PackedWeightError
from kolm_build.numerics import kernels

REFUSAL = "kolm portable-1: "
"""What the message of every refusal of a kernel begins with."""


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
    set_deterministic(mode=True)
    # NUM-125. The kernels' own results are not filled: they are written whole, and it takes time.
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_flush_denormal(False)


def deactivate() -> None:
    """Give PyTorch's own kernels back: for tests and benchmarks that compare both."""
    load()
    torch.ops.kolm_portable.disable()
    set_deterministic(mode=False)


def set_deterministic(*, mode: bool) -> None:
    """What `torch.use_deterministic_algorithms` does, but for telling torch's compiler.

    That is a second of imports and a hundred megabytes; here nothing is compiled (NUM-95).
    """
    torch._C._set_deterministic_algorithms(mode, warn_only=False)  # noqa: SLF001


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


@contextmanager
def instruction_set(name: str | None) -> Iterator[None]:
    """Compute with the instruction set `name` inside the block; None changes nothing.

    Raises:
        MachineError: The machine or the library has no such instruction set.
    """
    before = isa()
    if name is not None:
        set_isa(name)
    try:
        yield
    finally:
        set_isa(before)


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


def load(library: Path = kernels.LIBRARY) -> None:
    """Load the library, once.

    Args:
        library: Where it is; beside this file unless a sandbox shows it elsewhere.

    Raises:
        KernelsMissingError: It is missing, or was built for another PyTorch or other sources.
    """
    if _is_loaded():
        return
    kernels.load(library)
    _check_torch(library)


def _is_loaded() -> bool:
    return hasattr(torch.ops.kolm_portable, "enable")


def _check_torch(library: Path) -> None:
    built_for = str(torch.ops.kolm_portable.torch_version())
    installed = torch.__version__.split("+")[0]
    if built_for != installed:
        raise KernelsMissingError(
            "the portable kernels were built for another PyTorch",
            file=str(library),
            expected=installed,
            actual=built_for,
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
