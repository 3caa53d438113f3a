"""Where a user's own files are: keys, trust, stores (spec/cli.md, CLI-9 to CLI-13).

One of the two places that read the environment, and it turns it into paths at once. They are text
and not `Path`, because a build with nothing to do needs them and ends sooner than `pathlib` is
imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from kolm_build.errors import UsageError

StrPath = str | os.PathLike[str]

RECIPE = "kolm.toml"
LOCK = "kolm.lock"
OUTPUTS_SUFFIX = ".outputs"
"""`kolm.lock` has its expected outputs in `kolm.outputs`, and any other lock likewise."""

STORE_TITLE = "# The store"
"""How the README of a checkout's own store folder begins."""


def config_home() -> str:
    """The folder of the user's settings for kolm."""
    return f"{_home('XDG_CONFIG_HOME', '.config')}/kolm"


def default_key() -> str:
    """Where the signing key is unless the user says otherwise."""
    return os.environ.get("KOLM_KEY") or f"{config_home()}/key.pem"


def default_trust() -> str:
    """Where the trust file is unless the user says otherwise."""
    return os.environ.get("KOLM_TRUST") or f"{config_home()}/trust.toml"


def own_substituters() -> list[str]:
    """The addresses of the substituters that the user's environment names."""
    return os.environ.get("KOLM_SUBSTITUTERS", "").split()


def bucket_credentials() -> tuple[str, str, str | None] | None:
    """The id, secret and session token that open buckets, as other tools have them."""
    name, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    return (name, secret, os.environ.get("AWS_SESSION_TOKEN")) if name and secret else None


def registry_credentials() -> tuple[str, str] | None:
    """The name and password that open registries."""
    name, secret = os.environ.get("KOLM_OCI_USER"), os.environ.get("KOLM_OCI_PASSWORD")
    return (name, secret) if name and secret else None


def absolute(path: StrPath) -> str:
    """`path` from the root on; a ``..`` stays, since what stands before it may be a link."""
    parts = os.path.join(os.getcwd(), path).split("/")
    return "/" + "/".join(part for part in parts if part not in ("", "."))


def find_root(given: StrPath | None) -> str:
    """The folder of the project: `given`, else the nearest one upwards with a recipe.

    Raises:
        UsageError: There is none, or no folder `given`.
    """
    start = absolute("" if given is None else given)
    for folder in _upwards(start) if given is None else (start,):
        if os.path.isfile(f"{folder}/{RECIPE}"):
            return folder
    if not os.path.isdir(start):
        raise UsageError("there is no such folder", file=start)
    raise UsageError(
        f"there is no {RECIPE} here{' or above' if given is None else ''}",
        file=start,
        advice="`kolm init` writes one; -C DIR names another folder.",
    )


def lock_file(given: StrPath | None, root: StrPath) -> str:
    """The lock: `given`, else `kolm.lock` in the project's folder `root`."""
    return os.path.join(root, LOCK) if given is None else absolute(given)


def outputs_file(lock: StrPath) -> str:
    """The expected outputs of the lock in `lock`."""
    return os.path.splitext(lock)[0] + OUTPUTS_SUFFIX


def store_root(given: StrPath | None, start: StrPath) -> str:
    """The store for work in the folder `start`.

    Args:
        given: What the command line says.
        start: The project's folder.
    """
    if given is not None:
        return absolute(given)
    chosen = os.environ.get("KOLM_STORE") or _checkout_store(absolute(start))
    return absolute(chosen or f"{_home('XDG_DATA_HOME', '.local/share')}/kolm/store")


def _checkout_store(start: str) -> str | None:
    for folder in _upwards(start):
        store = f"{folder}/store"
        try:
            with open(f"{store}/README.md", encoding="utf-8", errors="replace") as file:
                if file.readline().startswith(STORE_TITLE):
                    return store
        except OSError:
            continue
    return None


def _upwards(folder: str) -> Iterator[str]:
    """`folder`, and each one above it up to the root."""
    yield folder
    while folder != (folder := os.path.dirname(folder)):
        yield folder


def _home(variable: str, otherwise: str) -> str:
    named = os.environ.get(variable, "")
    # The XDG specification: a relative path there is invalid and ignored.
    return named if os.path.isabs(named) else f"{os.path.expanduser('~')}/{otherwise}"
