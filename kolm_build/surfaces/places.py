"""Where a user's own files are: keys, trust, stores (spec/cli.md, CLI-9 to CLI-13).

One of the two places that read the environment, and it turns it into paths at once.
"""

from __future__ import annotations

import os
from pathlib import Path

from kolm_build.errors import UsageError

RECIPE = "kolm.toml"
LOCK = "kolm.lock"
OUTPUTS_SUFFIX = ".outputs"
"""`kolm.lock` has its expected outputs in `kolm.outputs`, and any other lock likewise."""

STORE_TITLE = "# The store"
"""How the README of a checkout's own store folder begins."""


def config_home() -> Path:
    """The folder of the user's settings for kolm."""
    return _home("XDG_CONFIG_HOME", ".config") / "kolm"


def default_key() -> Path:
    """Where the signing key is unless the user says otherwise."""
    return _named("KOLM_KEY") or config_home() / "key.pem"


def default_trust() -> Path:
    """Where the trust file is unless the user says otherwise."""
    return _named("KOLM_TRUST") or config_home() / "trust.toml"


def find_root(given: Path | None) -> Path:
    """The folder of the project: `given`, else the nearest one upwards with a recipe.

    Raises:
        UsageError: There is none.
    """
    start = (given or Path()).absolute()
    places = (start,) if given else (start, *start.parents)
    for folder in places:
        if (folder / RECIPE).is_file():
            return folder
    raise UsageError(
        f"there is no {RECIPE} here{'' if given else ' or above'}",
        file=str(start),
        advice="`kolm init` writes one; -C DIR names another folder.",
    )


def lock_file(given: Path | None, root: Path) -> Path:
    """The lock: `given`, else `kolm.lock` in the project's folder `root`."""
    return given.absolute() if given else root / LOCK


def outputs_file(lock: Path) -> Path:
    """The expected outputs of the lock in `lock`."""
    return lock.with_suffix(OUTPUTS_SUFFIX)


def store_root(given: Path | None, start: Path) -> Path:
    """The store for work in the folder `start`.

    Args:
        given: What the command line says.
        start: The project's folder.
    """
    chosen = given or _named("KOLM_STORE") or _checkout_store(start)
    return (chosen or _home("XDG_DATA_HOME", ".local/share") / "kolm" / "store").absolute()


def _checkout_store(start: Path) -> Path | None:
    for folder in (start, *start.parents):
        readme = folder / "store" / "README.md"
        try:
            with readme.open(encoding="utf-8", errors="replace") as file:
                if file.readline().startswith(STORE_TITLE):
                    return readme.parent
        except OSError:
            continue
    return None


def _named(variable: str) -> Path | None:
    text = os.environ.get(variable)
    return Path(text) if text else None


def _home(variable: str, otherwise: str) -> Path:
    named = _named(variable)
    # The XDG specification: a relative path there is invalid and ignored.
    return named if named and named.is_absolute() else Path.home() / otherwise
