"""Finding the wheels of a list: in a folder, else by pip, which is believed in nothing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from kolm_build.engine.pypa import packaging
from kolm_build.engine.wheel import check_tags
from kolm_build.engine.wheel_list import Listed
from kolm_build.errors import NetworkError, WrongContentError

_PIP = (
    "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-input", "--no-deps",
    "--only-binary=:all:", "--require-hashes",
)  # fmt: skip
_SAID_CHARACTERS = 600


def find_wheels(
    listed: Sequence[Listed], *, folder: Path | None, scratch: Path, offline: bool
) -> dict[str, Path]:
    """The wheel of each distribution, by name.

    Args:
        listed: What is wanted.
        folder: Where wheels lie; None for nowhere.
        scratch: Takes what is fetched.
        offline: Fetch nothing.

    Raises:
        NetworkError: A wheel is not in the folder, and cannot be fetched.
        MachineMismatchError: There are wheels of it, none of them for this machine.
        WrongContentError: There are wheels of it, with other bytes than those listed.
    """
    found = {} if folder is None else _in_folder(listed, folder)
    missing = [one for one in listed if one.name not in found]
    if missing and offline:
        raise _not_here(missing[0], folder)
    if missing:
        _fetch(missing, scratch)
        found |= _in_folder(missing, scratch)
    for one in missing:
        if one.name not in found:
            raise _not_here(one, scratch)
    return found


def _in_folder(listed: Iterable[Listed], folder: Path) -> dict[str, Path]:
    """The best wheel in `folder` of each distribution that it has at all."""
    known: dict[tuple[str, str], list[Path]] = {}
    utils = packaging("utils")
    for file in sorted(folder.glob("*.whl")):
        try:
            name, version, *_ = utils.parse_wheel_filename(file.name)
        except utils.InvalidWheelFilename:
            continue
        known.setdefault((name, str(version)), []).append(file)
    found = {}
    for one in listed:
        version = str(packaging("version").Version(one.version))
        files = known.get((one.name, version), [])
        if files:
            found[one.name] = _best(one, files)
    return found


def _best(listed: Listed, files: Sequence[Path]) -> Path:
    """Of `files`, wheels of one distribution, the listed one that suits this machine best."""
    same = {file: _sha256(file) for file in files}
    named = [file for file in files if same[file] in listed.digests]
    if not named:
        raise WrongContentError(
            f"{files[0].name} is not the wheel that is listed",
            file=listed.file,
            where=listed.where,
            expected=" or ".join(f"sha256:{one}" for one in sorted(listed.digests)),
            actual=", ".join(f"sha256:{one}" for one in same.values()),
            advice="Get it again; if the list is wrong, make it again from a source you trust.",
        )
    ranks = {tag: rank for rank, tag in enumerate(packaging("tags").sys_tags())}
    utils = packaging("utils")

    def rank(file: Path) -> int:
        tags = utils.parse_wheel_filename(file.name)[-1]
        return min((ranks[tag] for tag in tags if tag in ranks), default=len(ranks))

    best = min(named, key=rank)
    check_tags(best, listed)
    return best


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fetch(listed: Sequence[Listed], scratch: Path) -> None:
    """Have pip fetch wheels into `scratch`; what it brings is looked at like any other file."""
    text = ""
    for one in listed:
        hashes = " ".join(f"--hash=sha256:{digest}" for digest in sorted(one.digests))
        text += f"{one.name}=={one.version} {hashes}\n"
    (scratch / "wanted.txt").write_text(text)
    command = [sys.executable, *_PIP, "-d", str(scratch), "-r", str(scratch / "wanted.txt")]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise NetworkError(
            "the wheels could not be fetched",
            file=listed[0].file,
            actual=done.stderr.strip()[-_SAID_CHARACTERS:] or f"exit status {done.returncode}",
            advice="Name a folder that has them by --find-links. A distribution without a wheel for"
            " this machine is no input: its sdist is built only as a derivation of its own.",
        )


def _not_here(listed: Listed, folder: Path | None) -> NetworkError:
    return NetworkError(
        f"the wheel of {listed.name} {listed.version} is not here",
        file=listed.file,
        where=listed.where,
        expected=listed.wheels[0] if listed.wheels else f"{listed.name}-{listed.version}-….whl",
        actual=f"no such file in {folder}" if folder else "no folder of wheels, and no network",
        advice="Name a folder that has it by --find-links, or leave out --offline.",
    )
