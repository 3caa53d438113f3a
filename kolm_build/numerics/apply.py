"""The one door to arithmetic: what a derivation says of it holds inside a block.

Everything that computes with floating point does so inside `applied`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from kolm_build.core.numerics import NATIVE, PORTABLE, Numerics
from kolm_build.core.request import Circumstances, StepRequest
from kolm_build.errors import InvalidRecordError
from kolm_build.numerics import guard, kernels, native, portable


def applied_as(request: StepRequest) -> AbstractContextManager[None]:
    """`applied`, as the derivation of `request` says and in its circumstances."""
    return applied(request.numerics, request.circumstances)


@contextmanager
def applied(
    numerics: Numerics, circumstances: Circumstances | None = None, *, own_code: bool = False
) -> Iterator[None]:
    """Compute as `numerics` says inside the block.

    Args:
        numerics: Class, seed and, in `native-1`, threads.
        circumstances: Where the kernels are, how many threads they use and which instruction set,
            in `portable-1`; this installation's library, one thread and the machine's best where
            None.
        own_code: Whether the block runs code of this project alone: in `portable-1` PyTorch's
            compiler is then not loaded so that it can be held, and must stay away.

    Raises:
        InvalidRecordError: The class allows no floating point, or the seed is too large.
        KernelsMissingError: The compiled kernels are missing, or not those of this code.
        MachineError: The machine has no such instruction set.
        UncertifiedOperatorError: The block called an operation without a portable kernel.
        UncertifiedSettingError: The block moved a switch that can change bits.
        FloatingPointEnvironmentError: A thread does not compute by IEEE 754's defaults.
    """
    if numerics.cls == NATIVE:
        native.apply(numerics)
        yield
    elif numerics.cls == PORTABLE:
        here = circumstances or Circumstances(kernels=str(kernels.LIBRARY), threads=1)
        native.set_threads(here.threads)
        portable.load(Path(here.kernels))
        native.seed(numerics.seed)
        with portable.instruction_set(here.isa), guard.activate(own_code=own_code):
            yield
    else:
        raise InvalidRecordError(
            "this step computes with floating point",
            where="numerics.class",
            expected=f"{PORTABLE} or {NATIVE}",
            actual=numerics.cls,
        )
