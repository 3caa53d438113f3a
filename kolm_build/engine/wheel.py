"""Wheels: checked against their digest and their own RECORD, then unpacked.

A wheel is somebody else's archive. Nothing of it is written before its bytes have the digest that
the list names, and nothing of it is written that its RECORD does not name with the same hash and
size. What an installer would put outside site-packages (scripts, headers, data) is left out, as
it is where an installed environment is taken down, and so is byte code.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import re
import stat
import struct
import zipfile
import zlib
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kolm_build.core.environment import parse_distribution_name
from kolm_build.core.name import parse_entry
from kolm_build.engine.pypa import packaging
from kolm_build.engine.wheel_list import Listed
from kolm_build.errors import InvalidRecordError, MachineMismatchError, WrongContentError

_ALGORITHMS = ("sha256", "sha384", "sha512")
_UNLISTED = ("RECORD", "RECORD.jws", "RECORD.p7s")
_INSIDE, _OUTSIDE = ("purelib", "platlib"), ("data", "headers", "scripts")
_CHUNK_BYTES = 1 << 20
_MAX_METADATA_BYTES = 64 << 20
_MAX_MEMBERS = 200_000
_SPARE_BYTES = 1 << 30
_MAX_RATIO = 1000
_ENCRYPTED = 1
# What the archive's reader raises for one that is not in order.
_READING = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, IndexError, OverflowError, RuntimeError,
    ValueError,
)  # fmt: skip
_ADVICE = "Do not use it: whoever built it made a mistake or means harm. Get it from elsewhere."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A row of a RECORD: a hash algorithm, the hash as it is written, and a size."""

    algorithm: str
    digest: str
    size_bytes: int


def unpack_wheel(file: Path, site: Path, listed: Listed) -> None:
    """Put the distribution in the wheel `file` into the folder `site`, with a RECORD of its files.

    Args:
        file: The wheel.
        site: Takes the files; holds nothing but what this function put there.
        listed: What it has to be.

    Raises:
        WrongContentError: Its bytes are not those that the list names.
        InvalidRecordError: It is no wheel, its RECORD lies, or a name in it leads elsewhere.
        MachineMismatchError: It is for another machine or Python, or has a file that another
            wheel has with other bytes.
    """
    with file.open("rb") as stream, _as_invalid(file):
        _check_digest(hashlib.file_digest(stream, "sha256").hexdigest(), file, listed)
        check_tags(file, listed)
        with zipfile.ZipFile(stream) as archive:
            members = _members(archive, file)
            info = _info_folder(members, listed)
            _check_metadata(archive, members, info, listed)
            rows = _record(archive, members, info)
            _check_listed(members, rows, info)
            written = dict(_unpack(archive, members, rows, site))
        _write_record(site / info / "RECORD", written)


@contextmanager
def _as_invalid(file: Path) -> Iterator[None]:
    """Errors of the archive's reader and of a name, as errors of the wheel `file`."""
    try:
        yield
    except InvalidRecordError as error:
        raise error.in_file(str(file)) from None
    except _READING as error:
        raise _not_a_wheel(file, error) from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise _not_a_wheel(file, error) from error  # it points before its own beginning


def _not_a_wheel(file: Path, error: Exception) -> InvalidRecordError:
    return InvalidRecordError(
        "not a wheel, or a damaged one",
        file=str(file),
        expected="a ZIP archive with every file in order",
        actual=str(error) or type(error).__name__,
        advice=_ADVICE,
    )


def _check_digest(actual: str, file: Path, listed: Listed) -> None:
    if actual not in listed.digests:
        raise WrongContentError(
            f"{file.name} is not the wheel that is listed",
            file=listed.file,
            where=listed.where,
            expected=" or ".join(f"sha256:{digest}" for digest in sorted(listed.digests)),
            actual=f"sha256:{actual}",
            advice="Get it again; if the list is wrong, make it again from a source you trust.",
        )


def check_tags(file: Path, listed: Listed) -> None:
    """Refuse a wheel of another distribution or version, or for another machine or Python.

    Raises:
        InvalidRecordError: The file's name is no wheel's, or another distribution's.
        MachineMismatchError: It does not run here.
    """
    utils, versions = packaging("utils"), packaging("version")
    try:
        name, version, _, tags = utils.parse_wheel_filename(file.name)
    except utils.InvalidWheelFilename as error:
        raise InvalidRecordError("not the name of a wheel", actual=str(error)) from None
    if name != listed.name or version != versions.Version(listed.version):
        raise InvalidRecordError(
            "the wheel of another distribution",
            expected=f"{listed.name} {listed.version}",
            actual=f"{name} {version}",
        )
    here = list(packaging("tags").sys_tags())
    if tags.isdisjoint(here):
        raise MachineMismatchError(
            f"{listed.name} {listed.version} is built for another machine or Python",
            file=listed.file,
            where=listed.where,
            expected=f"a wheel for {here[0].interpreter}, {here[0].platform}",
            actual=", ".join(sorted(map(str, tags))),
            advice="List the wheel for this machine, or build with an environment that was stored"
            " on a machine like the one that it is for.",
        )


def _members(archive: zipfile.ZipFile, file: Path) -> Mapping[str, zipfile.ZipInfo]:
    """The archive's files by path, every name safe and of its own."""
    infos = archive.infolist()
    most = file.stat().st_size * _MAX_RATIO + _SPARE_BYTES
    if len(infos) > _MAX_MEMBERS or sum(info.file_size for info in infos) > most:
        raise InvalidRecordError(
            "a wheel that grows too much when it is unpacked",
            expected=f"at most {_MAX_MEMBERS} files and {most} bytes",
            advice=_ADVICE,
        )
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        _check_member(info)
        if info.is_dir():
            continue
        if found.setdefault(info.filename, info) is not info:
            raise _lies("two files of one name", info.filename)
    return found


def _check_member(info: zipfile.ZipInfo) -> None:
    path = info.orig_filename
    if path != info.filename:
        raise _lies("a name with a NUL in it", path)
    for part in path.removesuffix("/").split("/"):
        try:
            parse_entry(part)
        except InvalidRecordError:
            raise _lies(
                "a name that leads out of its folder, or that no folder holds", path
            ) from None
    kind = stat.S_IFMT(info.external_attr >> 16)
    wanted = stat.S_IFDIR if info.is_dir() else stat.S_IFREG
    if kind not in (0, wanted):
        raise _lies("a link or a special file", path)
    if info.flag_bits & _ENCRYPTED:
        raise _lies("an encrypted file", path)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _lies("a file that is packed by an unknown method", path)
    if info.is_dir() and info.file_size:
        raise _lies("a folder with bytes of its own", path)


def _lies(what: str, path: str) -> InvalidRecordError:
    return InvalidRecordError(
        f"the wheel has {what}",
        where=ascii(path)[:200],
        expected="plain files below one folder",
        advice=_ADVICE,
    )


def _info_folder(members: Mapping[str, zipfile.ZipInfo], listed: Listed) -> str:
    """The one ``.dist-info`` folder, which must be called after the distribution."""
    found = {path.partition("/")[0] for path in members if ".dist-info/" in path}
    found = {name for name in found if name.endswith(".dist-info")}
    expected = f"one folder {listed.name}-{listed.version}.dist-info"
    if len(found) != 1:
        raise InvalidRecordError(
            "not one distribution", expected=expected, actual=", ".join(sorted(found)) or "none"
        )
    (info,) = found
    match = re.fullmatch(r"(.+)-([^-]+)\.dist-info", info)
    if match is None or not _is_same(match[1], match[2], listed):
        raise InvalidRecordError("another distribution is inside", expected=expected, actual=info)
    return info


def _is_same(name: str, version: str, listed: Listed) -> bool:
    versions = packaging("version")
    try:
        is_version = versions.Version(version) == versions.Version(listed.version)
        return is_version and parse_distribution_name(name) == listed.name
    except (versions.InvalidVersion, InvalidRecordError):
        return False


def _check_metadata(
    archive: zipfile.ZipFile,
    members: Mapping[str, zipfile.ZipInfo],
    info: str,
    listed: Listed,
) -> None:
    """Refuse a METADATA of another distribution, and a wheel of another format."""
    lines = _text(archive, members, f"{info}/METADATA").partition("\n\n")[0].splitlines()
    fields = dict(reversed([line.split(": ", 1) for line in lines if ": " in line]))
    if not _is_same(fields.get("Name", ""), fields.get("Version", ""), listed):
        raise InvalidRecordError(
            "its metadata is about another distribution",
            where=f"{info}/METADATA",
            expected=f"{listed.name} {listed.version}",
            actual=f"{fields.get('Name')} {fields.get('Version')}"[:120],
            advice=_ADVICE,
        )
    first = _text(archive, members, f"{info}/WHEEL").splitlines()
    version = next((line for line in first if line.startswith("Wheel-Version:")), "none")
    if not re.fullmatch(r"Wheel-Version:\s*1\.\d+\s*", version):
        raise InvalidRecordError(
            "a wheel of another format version",
            where=f"{info}/WHEEL",
            expected="Wheel-Version: 1.0",
            actual=version[:80],
        )


def _text(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], path: str) -> str:
    info = members.get(path)
    if info is None or info.file_size > _MAX_METADATA_BYTES:
        raise InvalidRecordError(
            "the wheel lacks a file that every wheel has", where=path, advice=_ADVICE
        )
    return archive.read(info).decode().replace("\r\n", "\n")


def _record(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], info: str
) -> Mapping[str, _Row | None]:
    """What RECORD says of each path; None of itself and of its signatures."""
    path = f"{info}/RECORD"
    rows: dict[str, _Row | None] = {}
    for number, row in enumerate(csv.reader(io.StringIO(_text(archive, members, path))), 1):
        if not row:
            continue
        name = row[0]
        if name in rows:
            raise InvalidRecordError(
                "a path twice",
                where=f"{path}: line {number}",
                expected="each path once",
                actual=name,
                advice=_ADVICE,
            )
        rows[name] = None if _is_unlisted(name, info) else _row(row, f"{path}: line {number}")
    return rows


def _is_unlisted(path: str, info: str) -> bool:
    return path in [f"{info}/{name}" for name in _UNLISTED]


def _row(row: list[str], where: str) -> _Row:
    algorithm, _, digest = row[1].partition("=") if len(row) == 3 else ("", "", "")
    if algorithm not in _ALGORITHMS or not digest or not re.fullmatch(r"\d{1,15}", row[2]):
        raise InvalidRecordError(
            "a file without a hash or size in RECORD",
            where=where,
            expected="PATH,sha256=…,SIZE",
            actual=",".join(row)[:200],
            advice=_ADVICE,
        )
    return _Row(algorithm=algorithm, digest=digest.rstrip("="), size_bytes=int(row[2]))


def _check_listed(
    members: Mapping[str, zipfile.ZipInfo], rows: Mapping[str, _Row | None], info: str
) -> None:
    """Refuse a file that RECORD does not name, and a name without a file."""
    unnamed = sorted(path for path in members.keys() - rows.keys() if not _is_unlisted(path, info))
    missing = sorted(path for path in rows.keys() - members.keys() if not _is_unlisted(path, info))
    if unnamed or missing:
        what = "holds a file that its RECORD does not name" if unnamed else "lacks a file"
        raise InvalidRecordError(
            f"the wheel {what}",
            where=(unnamed or missing)[0],
            expected="exactly the files of RECORD",
            actual=f"{len(unnamed)} more, {len(missing)} missing",
            advice=_ADVICE,
        )


def _unpack(
    archive: zipfile.ZipFile,
    members: Mapping[str, zipfile.ZipInfo],
    rows: Mapping[str, _Row | None],
    site: Path,
) -> Iterator[tuple[str, tuple[str, int]]]:
    """Check every file and write those below site-packages; their paths, hashes and sizes."""
    for path, info in members.items():
        row, place = rows.get(path), _place(path)
        if row is None:
            continue
        target = None if place is None or place.endswith(".pyc") else site / place
        sha256 = _copy(archive, info, row, target)
        if target is not None and place is not None:
            yield place, (sha256, row.size_bytes)


def _place(path: str) -> str | None:
    """Where an installer puts `path`, below site-packages; None for outside of it."""
    top, slash, rest = path.partition("/")
    if not slash or not top.endswith(".data"):
        return path
    scheme, _, inner = rest.partition("/")
    if scheme in _INSIDE and inner and ".dist-info" not in inner.partition("/")[0]:
        return inner
    if scheme in _OUTSIDE:
        return None
    raise _lies("a folder that no installer knows", path)


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, row: _Row, target: Path | None) -> str:
    """Write a member to `target` while it is hashed; its SHA-256 as RECORD has it.

    Raises:
        InvalidRecordError: It is not what RECORD says.
    """
    hashes = {name: hashlib.new(name) for name in {"sha256", row.algorithm}}
    size = 0
    with archive.open(info) as source, _writer(target, row.size_bytes) as write:
        while chunk := source.read(_CHUNK_BYTES):
            size += len(chunk)
            for one in hashes.values():
                one.update(chunk)
            write(chunk)
    texts = {name: _text_of(one.digest()) for name, one in hashes.items()}
    if (texts[row.algorithm], size) != (row.digest, row.size_bytes):
        raise InvalidRecordError(
            "a file is not what the wheel's RECORD says",
            where=info.filename,
            expected=f"{row.algorithm}={row.digest}, {row.size_bytes} bytes",
            actual=f"{row.algorithm}={texts[row.algorithm]}, {size} bytes",
            advice=_ADVICE,
        )
    return texts["sha256"]


def _text_of(digest: bytes) -> str:
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


@contextmanager
def _writer(target: Path | None, size_bytes: int) -> Iterator[Callable[[bytes], object]]:
    """What takes the bytes of a file: a new one, or one that must have the same already."""
    if target is None:
        yield lambda _: None
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("xb")
    except (FileExistsError, NotADirectoryError):
        yield _Same(target, size_bytes).check
        return
    with file:
        yield file.write


class _Same:
    """Compares what is written with a file that another wheel brought."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._is_file = path.is_file() and path.stat().st_size == size_bytes
        self._at = 0
        self.check(b"")

    def check(self, chunk: bytes) -> None:
        """Compare the next bytes."""
        there = None
        if self._is_file:
            with self._path.open("rb") as file:
                file.seek(self._at)
                there = file.read(len(chunk))
        self._at += len(chunk)
        if there != chunk:
            raise MachineMismatchError(
                "two wheels have one file with different bytes",
                where=self._path.name,
                advice="They cannot be in one environment: list other versions, or one of them.",
            )


def _write_record(path: Path, written: Mapping[str, tuple[str, int]]) -> None:
    """A RECORD of what is there, as an installer leaves one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for name in sorted(written):
        sha256, size = written[name]
        writer.writerow((name, f"sha256={sha256}", size))
    writer.writerow((f"{path.parent.name}/RECORD", "", ""))
    with path.open("x", encoding="utf-8") as file:
        file.write(text.getvalue())
