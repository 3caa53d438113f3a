"""The digest of the portable kernels' sources: which arithmetic a build used (spec/numerics.md).

It is what ``sha256sum`` says of the lines that ``sha256sum`` says of the files, sorted by path, so
that CMake, a shell and this module agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

from kolm_build.core.digest import Sha256

FOLDER = "kolm_build/numerics/csrc"
"""Where the sources are in a code tree."""


def sources_digest(files: Mapping[str, Sha256]) -> Sha256:
    """The digest of the sources `files`: path below their folder to the digest of the bytes."""
    listing = "".join(f"{files[path].hex}  {path}\n" for path in sorted(files))
    return Sha256(sha256(listing.encode()).digest())
