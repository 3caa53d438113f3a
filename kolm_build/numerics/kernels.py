"""The compiled kernels of `portable-1`: found, compared with their sources, loaded.

The sources are part of this code: `CODE_DATA` puts them into the code tree of every step that can
compute. The library is part of the installation, and its own bytes are no input of anything: it
says which sources it was compiled from, and others than these are refused.
"""

from __future__ import annotations

from ctypes import CDLL, c_char_p
from pathlib import Path

from kolm_build.core.digest import Sha256
from kolm_build.core.kernels import sources_digest
from kolm_build.errors import KernelsMissingError

CODE_DATA = ("csrc/*.cmake", "csrc/*.cpp", "csrc/*.h")
# Programs that test the kernels are in csrc/testing and decide nothing.

HERE = Path(__file__).parent
SOURCES = HERE / "csrc"
LIBRARY = HERE / "libkolm_portable.so"
"""The library of an installation; in a sandbox it is elsewhere."""

_ADVICE = "`make kernels` compiles them in a checkout; a wheel brings them along."


def sources(*folders: str) -> Sha256:
    """The digest of the sources beside this module, those of `folders` below theirs among them."""
    patterns = [*CODE_DATA, *(f"csrc/{one}/*.{end}" for one in folders for end in ("cpp", "h"))]
    found = [path for pattern in patterns for path in HERE.glob(pattern) if path.is_file()]
    return sources_digest(
        {path.relative_to(SOURCES).as_posix(): Sha256.of_blob(path.read_bytes()) for path in found}
    )


def load(library: Path, *folders: str) -> CDLL:
    """The library of compiled kernels; for one that links torch, torch must be imported.

    Args:
        library: Where it is.
        folders: Folders of sources that it has beside the kernels' own.

    Raises:
        KernelsMissingError: It is not there, does not load, or was compiled from other sources.
    """
    if not library.is_file():
        raise KernelsMissingError(
            "the portable kernels are not compiled", file=str(library), advice=_ADVICE
        )
    try:
        loaded = CDLL(str(library))
    except OSError as error:
        raise KernelsMissingError(
            "the portable kernels do not load: they were compiled for another torch or machine",
            file=str(library),
            actual=str(error),
            advice=_ADVICE,
        ) from error
    _check(loaded, library, str(sources(*folders)))
    return loaded


def _check(loaded: CDLL, library: Path, wanted: str) -> None:
    try:
        loaded.kolm_sources.restype = c_char_p
    except AttributeError:
        raise KernelsMissingError(
            "the library does not say which sources it was made from",
            file=str(library),
            advice=_ADVICE,
        ) from None
    said = str(loaded.kolm_sources().decode())
    if said != wanted:
        raise KernelsMissingError(
            "the compiled kernels were made from other sources than the step's",
            file=str(library),
            expected=wanted,
            actual=said,
            advice=_ADVICE + " For a lock of another kolm, use that version.",
        )
