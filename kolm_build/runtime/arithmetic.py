"""The arithmetic that networks of torch's are asked in."""

from __future__ import annotations

from kolm_build.core.numerics import NATIVE, PORTABLE, Numerics
from kolm_build.core.request import Circumstances
from kolm_build.numerics.apply import applied
from kolm_build.numerics.kernels import LIBRARY
from kolm_build.runtime.opening import Arithmetic


def portable_arithmetic(threads: int, *, own_code: bool) -> Arithmetic:
    """Makes blocks of `portable-1`.

    Args:
        threads: Compute threads; they change no bit.
        own_code: Whether code of this project alone computes in them.
    """
    here = Circumstances(kernels=str(LIBRARY), threads=threads)
    return lambda: applied(Numerics(cls=PORTABLE), here, own_code=own_code)


def native_arithmetic(threads: int) -> Arithmetic:
    """Makes blocks of `native-1`; `threads` are compute threads."""
    return lambda: applied(Numerics(cls=NATIVE, threads=threads))
