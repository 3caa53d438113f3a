"""The numerics class `portable-1`: the same bits on every machine (spec/numerics.md)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kolm_build.core.numerics import Numerics
from kolm_build.errors import UnsupportedVersionError
from kolm_build.numerics import kernels, native


@contextmanager
def applied(numerics: Numerics, *, library: Path, threads: int) -> Iterator[None]:
    """Compute by the kernels of `library` inside the block.

    Raises:
        MachineMismatchError: The library is missing, or was compiled from other sources.
        InvalidRecordError: The seed is too large.
        UnsupportedVersionError: The kernels do not cover torch's dispatcher yet.
    """
    native.set_threads(threads)
    kernels.load(library)
    native.seed(numerics.seed)
    yield from ()
    raise UnsupportedVersionError("portable-1 is not available in this version")
