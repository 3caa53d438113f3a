"""Which key signs, and what opens it (spec/cli.md, CLI-12)."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.errors import KeyFileError
from kolm_build.surfaces.places import StrPath, default_key

if TYPE_CHECKING:
    from kolm_build.attest.keys import PublicKey, SigningKey

_MARK = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
MAX_PASSPHRASE_BYTES = 4096
_OPENLY = "make it with --unencrypted"


def find_key(given: StrPath | None, passphrase_file: StrPath | None) -> SigningKey | None:
    """The key to sign with: `given`, else the user's own if there is one.

    Raises:
        KeyFileError: The key is there and cannot be used, or `given` is not there.
    """
    path = Path(default_key() if given is None else given)
    if given is None and not path.exists():
        return None
    return open_key(path, passphrase_file, otherwise="build with --no-sign")


def open_key(
    path: Path, passphrase_file: StrPath | None, *, otherwise: str | None = None
) -> SigningKey:
    """The private key in `path`, its passphrase looked for where spec/cli.md says.

    Args:
        path: The private key.
        passphrase_file: The file whose first line is its passphrase, if one was named.
        otherwise: What can be done where nobody knows the passphrase.
    """
    from kolm_build.attest.keys import load

    if not _is_encrypted(path):
        return load(path, passphrase=None)
    passphrase = known_passphrase(passphrase_file) or _asked(
        f"Passphrase of {path}: ", otherwise=otherwise
    )
    return load(path, passphrase=passphrase)


def new_passphrase(passphrase_file: StrPath | None) -> bytes:
    """A passphrase for a new key, asked for twice where it has to be asked for."""
    known = known_passphrase(passphrase_file)
    if known:
        return known
    first = _asked("Passphrase for the new key: ", otherwise=_OPENLY)
    if first != _asked("The same again: ", otherwise=_OPENLY):
        raise KeyFileError("the two passphrases differ")
    return first


def known_passphrase(passphrase_file: StrPath | None) -> bytes | None:
    """The passphrase that the user wrote down: in a file, or in the environment."""
    if passphrase_file is not None:
        with Path(passphrase_file).open("rb") as file:
            found = file.read(MAX_PASSPHRASE_BYTES).split(b"\n", 1)[0].rstrip(b"\r")
        if not found:
            raise KeyFileError("the passphrase is empty", file=str(passphrase_file))
        return found
    text = os.environ.get("KOLM_PASSPHRASE")
    return os.fsencode(text) if text else None


def public_file(path: Path) -> Path:
    """Where the public half of the private key `path` lies."""
    return path.with_name(path.name + ".pub")


def read_public(path: Path) -> PublicKey:
    """The public key in `path`: its text form, PEM, or the one beside a private key."""
    from kolm_build.attest.keys import MAX_FILE_BYTES, parse_public

    beside = public_file(path)
    with (beside if beside.exists() else path).open("rb") as file:
        return parse_public(file.read(MAX_FILE_BYTES))


def _is_encrypted(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return _MARK in file.read(4096)
    except OSError:
        return False  # `load` will say what is wrong with it


def _asked(question: str, *, otherwise: str | None) -> bytes:
    if not sys.stdin.isatty():
        way_out = "" if otherwise is None else f", or {otherwise}"
        raise KeyFileError(
            "the key's passphrase is not known and nobody can be asked",
            advice=f"Give --passphrase-file FILE or $KOLM_PASSPHRASE{way_out}.",
        )
    try:
        answer = getpass.getpass(question, stream=sys.stderr)
    except EOFError:
        answer = ""
    if not answer:
        raise KeyFileError("no passphrase was given")
    return answer.encode()
