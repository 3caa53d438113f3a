"""The trust file that a command line means (spec/cli.md, CLI-13)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.errors import KeyFileError

if TYPE_CHECKING:
    from kolm_build.attest.trust import TrustPolicy
    from kolm_build.surfaces.places import StrPath


def read_trust(given: StrPath | None) -> TrustPolicy:
    """Whom the reader trusts: `given`, else the user's own trust file.

    Raises:
        KeyFileError: There is none, or it cannot be used.
    """
    from kolm_build.attest.trust import MAX_BYTES, parse_trust
    from kolm_build.surfaces.places import default_trust

    path = Path(default_trust() if given is None else given)
    try:
        with path.open("rb") as file:
            return parse_trust(file.read(MAX_BYTES + 1), str(path))
    except FileNotFoundError:
        raise KeyFileError(
            "there is no trust file, so nobody is trusted",
            file=str(path),
            advice="`kolm key trust KEY --name NAME` makes one; --no-trust checks the bytes alone.",
        ) from None


def own_trust(given: StrPath | None) -> TrustPolicy | None:
    """The same, but None where the user has no trust file and named none."""
    from kolm_build.surfaces.places import default_trust

    if given is None and not Path(default_trust()).exists():
        return None
    return read_trust(given)
