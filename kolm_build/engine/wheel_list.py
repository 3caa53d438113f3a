"""Lists of wheels: every distribution of an environment by name, version and digest.

Two forms are read: ``pylock.toml`` (PEP 751), and a requirements file of pip in which every line
is pinned and has hashes. What is not a wheel with a digest is refused, with file and line, before
anything is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kolm_build.core.environment import parse_distribution_name
from kolm_build.core.toml import read_toml
from kolm_build.engine.pypa import packaging
from kolm_build.errors import InvalidRecordError, MachineMismatchError, UnsupportedVersionError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_HASH = re.compile(r"\s--hash[ =](\S+)")
_COMMENT = re.compile(r"(^|\s)#.*$")
_HEADER = re.compile(r"\s*\[\[\s*packages\s*\]\]")
_SAYS_NOTHING = ("--require-hashes", "--only-binary", "--prefer-binary", "--no-deps")
_PINNED = "NAME==VERSION --hash=sha256:…"
_SDIST_ADVICE = (
    "An sdist is built only as a derivation of its own: build the wheel, check it, and list it"
    " with its sha256."
)
_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A distribution of a list.

    Attributes:
        name: Its normalised name.
        version: Its version.
        digests: The SHA-256, in hex, of each file that it may be.
        wheels: The wheels' file names, where the list has them.
        file: The list.
        where: The place in it, for errors.
    """

    name: str
    version: str
    digests: frozenset[str]
    wheels: tuple[str, ...] = ()
    file: str
    where: str


def read_wheel_list(path: Path) -> tuple[Listed, ...]:
    """The distributions that `path` lists for this interpreter and machine, sorted by name.

    Raises:
        InvalidRecordError: A line is not a pinned wheel with a SHA-256, or stands there twice.
        MachineMismatchError: It is for another Python, or has no wheel for this machine.
        UnsupportedVersionError: It is a pylock of a version that is not read.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRecordError("cannot be read", file=str(path), actual=str(error)) from error
    if path.suffix == ".toml":
        found = list(_pylock(text, str(path)))
    else:
        found = list(_requirements(text, str(path)))
    known: dict[str, Listed] = {}
    for one in found:
        first = known.setdefault(one.name, one)
        if first is not one:
            raise InvalidRecordError(
                f"{one.name} is listed twice", file=str(path), where=one.where, actual=first.where
            )
    if not known:
        raise InvalidRecordError("no wheel is listed", file=str(path), expected=_PINNED)
    return tuple(known[name] for name in sorted(known))


def _requirements(text: str, file: str) -> Iterator[Listed]:
    for number, line in _joined_lines(text, file):
        where = f"line {number}"
        try:
            found = _requirement(line)
        except InvalidRecordError as error:
            raise error.in_file(file).under(where) from None
        if found is not None:
            name, version, digests = found
            yield Listed(name=name, version=version, digests=digests, file=file, where=where)


def _joined_lines(text: str, file: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line, comments gone, what a backslash continues put together."""
    start = 0
    parts: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        start = start if parts else number
        bare = line.rstrip()
        parts.append(_COMMENT.sub("", bare.removesuffix("\\")))
        if not bare.endswith("\\"):
            whole = " ".join(parts).strip()
            parts = []
            if whole:
                yield start, whole
    if parts:
        raise InvalidRecordError(
            "a line goes on, and nothing follows", file=file, where=f"line {start}"
        )


def _requirement(line: str) -> tuple[str, str, frozenset[str]] | None:
    """Name, version and digests of a line; None for one that does not concern this machine."""
    if line.startswith("-"):
        _check_option(line)
        return None
    hashes = _HASH.findall(line)
    pin = _HASH.sub("", line).strip()
    requirements = packaging("requirements")
    try:
        requirement = requirements.Requirement(pin)
    except requirements.InvalidRequirement:
        raise InvalidRecordError(
            "not a pinned distribution",
            expected=_PINNED,
            actual=pin[:120],
            advice="A folder or archive has no wheel's digest: build the wheel, and list that.",
        ) from None
    version = _pinned_version(requirement, pin)
    if requirement.marker is not None and not requirement.marker.evaluate():
        return None
    return parse_distribution_name(requirement.name), version, _digests(requirement.name, hashes)


def _check_option(line: str) -> None:
    """Refuse a line that changes what is installed, or where it comes from."""
    option = re.split(r"[ =]", line, maxsplit=1)[0]
    if option in _SAYS_NOTHING:
        return
    if option in ("-e", "--editable"):
        raise InvalidRecordError(
            "an editable distribution has no fixed content",
            expected=_PINNED,
            actual=line[:120],
            advice="Build its wheel, and list that with its sha256.",
        )
    raise InvalidRecordError(
        f"{option} has no place in a list of wheels",
        expected=_PINNED,
        actual=line[:120],
        advice="Indexes belong into pip's own configuration, folders of wheels to --find-links,"
        " and other lists into this one.",
    )


def _pinned_version(requirement: Any, pin: str) -> str:
    pins = [one for one in requirement.specifier if one.operator in ("==", "===")]
    one_version = len(pins) == len(requirement.specifier) == 1 and "*" not in pins[0].version
    if requirement.url is not None or not one_version:
        raise InvalidRecordError(
            "not pinned to one version",
            expected=_PINNED,
            actual=pin[:120],
            advice="`pip lock`, `uv export --format pylock.toml` or"
            " `uv pip compile --generate-hashes` pins everything.",
        )
    return str(pins[0].version)


def _digests(name: str, hashes: list[str]) -> frozenset[str]:
    digests = {text.removeprefix("sha256:") for text in hashes if text.startswith("sha256:")}
    bad = [text for text in digests if not _SHA256.fullmatch(text)]
    if not digests or bad:
        raise InvalidRecordError(
            f"{name} has no SHA-256",
            expected="--hash=sha256: and 64 hex digits",
            actual=", ".join(bad or hashes)[:120] or "no hash",
            advice="`pip hash FILE.whl` prints one; `uv pip compile --generate-hashes` lists all.",
        )
    return frozenset(digests)


def _pylock(text: str, file: str) -> Iterator[Listed]:
    pylock = packaging("pylock")
    try:
        table = read_toml(text)
    except InvalidRecordError as error:
        raise error.in_file(file) from None
    lines = [number for number, line in enumerate(text.splitlines(), 1) if _HEADER.match(line)]
    _check_hashes(table, lines, file)
    try:
        lock = pylock.Pylock.from_dict(table)
        chosen = list(lock.select())
    except pylock.PylockUnsupportedVersionError as error:
        raise UnsupportedVersionError(
            "a pylock of another version", file=file, expected="1.0", actual=str(error)
        ) from None
    except pylock.PylockValidationError as error:
        raise InvalidRecordError(
            "not a pylock (PEP 751)",
            file=file,
            where=_place_in(error.context or "", lines) or error.context,
            actual=error.message,
        ) from None
    except pylock.PylockSelectError as error:
        raise MachineMismatchError(
            "the list is for another machine or Python",
            file=file,
            where=_place_in(str(error), lines),
            expected=f"a wheel for {_this_machine()}",
            actual=str(error),
            advice="Make the list again for this interpreter and machine, or build with the stored"
            " environment of a machine like the one that it is for.",
        ) from None
    order = {id(package): number for number, package in enumerate(lock.packages)}
    for package, source in chosen:
        where = _place(order[id(package)], lines)
        if not isinstance(source, pylock.PackageWheel):
            raise _no_wheel(package, source, file, where)
        if package.version is None:
            raise InvalidRecordError(
                f"{package.name} has no version", file=file, where=where, expected="version = …"
            )
        yield Listed(
            name=parse_distribution_name(package.name),
            version=str(package.version),
            digests=frozenset({source.hashes["sha256"].lower()}),
            wheels=(source.filename,),
            file=file,
            where=where,
        )


def _check_hashes(table: Mapping[str, object], lines: list[int], file: str) -> None:
    """Refuse a wheel without a SHA-256, which PEP 751 allows as long as it has another hash."""
    packages = table.get("packages")
    for number, package in enumerate(packages if isinstance(packages, list) else ()):
        wheels = package.get("wheels") if isinstance(package, dict) else None
        for at, wheel in enumerate(wheels if isinstance(wheels, list) else ()):
            hashes = wheel.get("hashes") if isinstance(wheel, dict) else None
            sha256 = hashes.get("sha256") if isinstance(hashes, dict) else None
            if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256.lower()):
                raise InvalidRecordError(
                    "a wheel without a SHA-256",
                    file=file,
                    where=f"{_place(number, lines)}.wheels[{at}]",
                    expected='hashes = {sha256 = "…"}, 64 hex digits',
                    actual=str(hashes)[:120] if hashes else "no hashes",
                    advice="`uv export --format pylock.toml` and `pip lock` list them.",
                )


def _no_wheel(package: Any, source: object, file: str, where: str) -> InvalidRecordError:
    kind = type(source).__name__.removeprefix("Package").lower()
    editable = kind == "directory" and getattr(source, "editable", None)
    return InvalidRecordError(
        f"{package.name} is {'editable' if editable else f'listed as a {kind}'}, not as a wheel",
        file=file,
        where=where,
        expected="wheels with a SHA-256 each",
        actual=", ".join(wheel.filename for wheel in package.wheels or ())[:200] or kind,
        advice=_SDIST_ADVICE,
    )


def _place(number: int, lines: list[int]) -> str:
    """Where package `number` stands; with its line where tables are written one by one."""
    line = f"line {lines[number]}: " if number < len(lines) else ""
    return f"{line}packages[{number}]"


def _place_in(message: str, lines: list[int]) -> str | None:
    match = re.search(r"packages\[(\d+)\](\S*[^\s,.])?", message)
    return None if match is None else _place(int(match[1]), lines) + (match[2] or "")


def _this_machine() -> str:
    tag = next(iter(packaging("tags").sys_tags()))
    return f"{tag.interpreter}, {tag.platform}"
