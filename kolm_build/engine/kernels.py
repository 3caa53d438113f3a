"""The compiled kernels of `portable-1` on this machine, and how many threads they get.

Both are circumstance: the code tree of a portable step holds the kernels' sources, and the step
itself refuses a library that was compiled from others (spec/numerics.md).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kolm_build.core.derivation import Derivation
from kolm_build.core.numerics import PORTABLE
from kolm_build.errors import KernelsMissingError

LIBRARY = "numerics/libkolm_portable.so"
"""Where the library is in the installed package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """How portable steps run on this machine.

    Attributes:
        library: The compiled kernels; they may be missing as long as no portable step runs.
        threads: Compute threads of each step; None for all usable processors.
    """

    library: Path | None = None
    threads: int | None = None

    def threads_of(self, derivation: Derivation) -> int:
        """The compute threads that the step of `derivation` gets."""
        if derivation.numerics.cls != PORTABLE:
            return derivation.numerics.threads
        return self.threads or len(os.sched_getaffinity(0))

    def library_of(self, derivation: Derivation) -> Path | None:
        """The library that the step of `derivation` needs; None where it needs none.

        Raises:
            KernelsMissingError: It is not installed.
        """
        if derivation.numerics.cls != PORTABLE:
            return None
        if self.library is None or not self.library.is_file():
            raise KernelsMissingError(
                f"the kernels of the class {PORTABLE} are not compiled",
                file=None if self.library is None else str(self.library),
                where=derivation.name,
                advice="`make kernels` compiles them in a checkout; a wheel brings them along.",
            )
        return self.library
