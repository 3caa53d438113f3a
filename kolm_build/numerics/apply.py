"""The one door to arithmetic: a step says how its derivation computes, and computes so.

`apply` comes first in everything that computes with floating point.
"""

from __future__ import annotations

from pathlib import Path

from kolm_build.core.numerics import NATIVE, PORTABLE, Numerics
from kolm_build.core.request import Circumstances, StepRequest
from kolm_build.errors import InvalidRecordError
from kolm_build.numerics import kernels, native, portable


def apply_request(request: StepRequest) -> None:
    """Make this process compute as the derivation of `request` says.

    Raises:
        InvalidRecordError: The class allows no floating point, or the seed is too large.
        MachineMismatchError: The compiled kernels are missing, or not those of this code.
    """
    apply(request.numerics, request.circumstances)


def apply(numerics: Numerics, circumstances: Circumstances | None = None) -> None:
    """Make this process compute as `numerics` says.

    Args:
        numerics: Class, seed and, in `native-1`, threads.
        circumstances: Where the kernels are and how many threads they use, in `portable-1`; this
            installation's library and one thread where None.

    Raises:
        InvalidRecordError: The class allows no floating point, or the seed is too large.
        MachineMismatchError: The compiled kernels are missing, or not those of this code.
    """
    if numerics.cls == NATIVE:
        native.apply(numerics)
    elif numerics.cls == PORTABLE:
        here = circumstances or Circumstances(kernels=str(kernels.LIBRARY), threads=1)
        portable.apply(numerics, library=Path(here.kernels), threads=here.threads)
    else:
        raise InvalidRecordError(
            "this step computes with floating point",
            where="numerics.class",
            expected=f"{PORTABLE} or {NATIVE}",
            actual=numerics.cls,
        )
