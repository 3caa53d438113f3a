"""The container of a `.kolm` file: one strict profile of ZIP (spec/artifact.md).

Any unzip tool opens it, and it has one encoding: `layout` says where every byte goes that is not
a member's own, and `parse` reads the central directory, lays the members out again, and refuses
the file unless all of those bytes are the same. So there is no gap, prefix, comment, duplicate or
disagreeing header to hide in. Members are stored, and their data starts at a multiple of 64
bytes: weights can be mapped into memory where they lie.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from unicodedata import category, normalize

from kolm_build.core.name import parse_entry
from kolm_build.errors import InvalidRecordError

ALIGNMENT = 64
MANIFEST = "manifest.json"
ATTESTATIONS = "attestations/"
MAX_MEMBERS = 65_534
MAX_PATH_BYTES = 512
MAX_PARTS = 32
MAX_FILE_BYTES = (1 << 32) - 2

Read = Callable[[int, int], bytes]
"""``read(offset, length)``: that many bytes, or fewer at the end of the file."""

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_COMMON = ("version needed", "flags", "method", "time", "date", "crc32", "stored size", "size")
_LOCAL_FIELDS = ("signature", *_COMMON, "name length", "extra length")
_CENTRAL_FIELDS = (
    *("signature", "version made by", *_COMMON, "name length", "extra length"),
    *("comment length", "disk", "internal attributes", "external attributes", "offset"),
)
_END_FIELDS = (
    *("signature", "disk", "directory disk", "members on this disk", "members"),
    *("directory size", "directory offset", "comment length"),
)
_FORBIDDEN = frozenset('\\:*?"<>|')
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_VERSION, _UTF8, _STORED, _TIME, _DATE = 20, 0x800, 0, 0, 0x21
_MADE_BY, _MODE = 3 << 8 | 20, 0o100644 << 16  # a Unix tool; -rw-r--r--
_MAX_DIRECTORY_BYTES = MAX_MEMBERS * (_CENTRAL.size + MAX_PATH_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A file in the archive.

    Attributes:
        path: Its path, parts separated by ``/``.
        size: Its number of bytes.
        crc32: The CRC-32 that the ZIP format wants of them.
    """

    path: str
    size: int
    crc32: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A member with its place.

    Attributes:
        member: The member.
        offset: Where its data starts in the file.
        lead: The padding and local header that go right before its data.
    """

    member: Member
    offset: int
    lead: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Every byte of the file that is not a member's own.

    Attributes:
        placed: The members in their order.
        tail: What follows the last member: central directory and end record.
        size: The file's number of bytes.
    """

    placed: tuple[Placed, ...]
    tail: bytes
    size: int


def order(path: str) -> tuple[int, bytes]:
    """The sort key of a member: the manifest, the body, the attestations, each by UTF-8 bytes."""
    rank = 0 if path == MANIFEST else 2 if path.startswith(ATTESTATIONS) else 1
    return rank, path.encode()


def layout(members: Iterable[Member]) -> Layout:
    """Where everything goes in the one file that holds `members`, given in any order.

    Raises:
        InvalidRecordError: A path is bad, two members cannot both be extracted on any file
            system, there are too many of them, or the file would be 4 GiB or more.
    """
    ordered = sorted(members, key=lambda member: order(member.path))
    _check_paths([member.path for member in ordered])
    placed, records, at = [], [], 0
    for member in ordered:
        piece, record = _place(member, at)
        placed.append(piece)
        records.append(record)
        at = piece.offset + member.size
        _check_size(at)
    directory, count = b"".join(records), len(ordered)
    end = _END.pack(b"PK\5\6", 0, 0, count, count, len(directory), at, 0)
    size = at + len(directory) + len(end)
    _check_size(size)
    return Layout(placed=tuple(placed), tail=directory + end, size=size)


def parse(read: Read, size: int) -> Layout:
    """The layout of the archive of `size` bytes behind `read`, every byte of it accounted for.

    The members' own bytes are not read: whoever uses them checks them against the manifest.

    Raises:
        InvalidRecordError: Any byte outside the members differs from what `layout` gives.
    """
    end = _read_end(read, size)
    count, length, start = _END.unpack(end)[4:7]
    directory = read(start, length)
    members = tuple(_members(directory))
    found = layout(members)
    _check_central(directory, found.tail, members)
    if found.size != size or directory + end != found.tail:
        raise InvalidRecordError(
            "bytes that belong to no member",
            expected=f"{len(members)} members, {found.size} bytes",
            actual=f"{count} members, {size} bytes",
        )
    for piece in found.placed:
        _check_lead(read(piece.offset - len(piece.lead), len(piece.lead)), piece)
    return found


def parse_path(path: str) -> str:
    """`path` as the path of a member.

    Raises:
        InvalidRecordError: It is absolute, too long, has an empty or dotted part, or a character
            that some system cannot have in a file name: controls, backslash, colon, ....
    """
    parts = path.split("/")
    try:
        for part in parts:
            parse_entry(part)
    except InvalidRecordError as error:
        raise _bad_path(path) from error
    if (
        len(path.encode()) > MAX_PATH_BYTES
        or len(parts) > MAX_PARTS
        or not _FORBIDDEN.isdisjoint(path)
        or (not path.isascii() and any(category(sign) in _INVISIBLE for sign in path))
        or any(part[-1] in ". " for part in parts)
    ):
        raise _bad_path(path)
    return path


def _bad_path(path: str) -> InvalidRecordError:
    return InvalidRecordError(
        "not a path that an artifact may hold",
        expected="relative, '/' between parts, NFC, nothing invisible, none of \\ : * ? \" < > |",
        actual=ascii(path)[:90],
    )


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise InvalidRecordError(
            "too large for one artifact",
            expected=f"at most {MAX_FILE_BYTES} bytes",
            actual=f"{size} bytes or more",
            advice="The format has no ZIP64; quantise the model or keep it in 16 bits.",
        )


def _check_paths(paths: Sequence[str]) -> None:
    """Refuse bad paths, repeated ones, ones that fold together, and a file that is a folder."""
    if len(paths) > MAX_MEMBERS:
        raise InvalidRecordError("too many members", expected=f"at most {MAX_MEMBERS}")
    files: dict[str, str] = {}
    for path in paths:
        parse_path(path)
        other = files.setdefault(_folded(path), path)
        if other is not path:
            raise InvalidRecordError("two members of one name", where=path, actual=other)
    both = files.keys() & _folded_folders(paths)
    if both:
        raise InvalidRecordError("a member is a file and a folder", where=files[min(both)])


def _folded(path: str) -> str:
    return normalize("NFC", path.casefold())


def _folded_folders(paths: Iterable[str]) -> set[str]:
    folders: dict[str, str] = {}
    inside = {folder: path for path in paths for folder in _folders(path)}
    for folder, path in inside.items():
        if folders.setdefault(_folded(folder), folder) != folder:
            raise InvalidRecordError("two folders that differ only in case", where=path)
    return set(folders)


def _folders(path: str) -> Iterable[str]:
    return accumulate(path.split("/")[:-1], "{}/{}".format)


def _place(member: Member, at: int) -> tuple[Placed, bytes]:
    """`member` placed at the first good offset from `at`, and its central record."""
    name = member.path.encode()
    _check_size(member.size)
    if member.size < 0 or not 0 <= member.crc32 < 1 << 32:
        raise InvalidRecordError("size or CRC-32 out of range", where=member.path)
    head = _LOCAL.size + len(name)
    padding = -(at + head) % ALIGNMENT if at else 0
    common = (_VERSION, _UTF8, _STORED, _TIME, _DATE, member.crc32, member.size, member.size)
    local = _LOCAL.pack(b"PK\3\4", *common, len(name), 0)
    central = _CENTRAL.pack(
        b"PK\1\2", _MADE_BY, *common, len(name), 0, 0, 0, 0, _MODE, at + padding
    )
    piece = Placed(member=member, offset=at + padding + head, lead=bytes(padding) + local + name)
    return piece, central + name


def _read_end(read: Read, size: int) -> bytes:
    """The end record, with nothing after it and the directory right before it."""
    raw = read(max(size - _END.size, 0), _END.size)
    if len(raw) != _END.size:
        raise InvalidRecordError("too short for an artifact", actual=f"{size} bytes")
    count, length = _END.unpack(raw)[4:6]
    start = size - _END.size - length
    _check_fields(
        _END_FIELDS, raw, (b"PK\5\6", 0, 0, count, count, length, start, 0), _END, "end of file"
    )
    if count > MAX_MEMBERS or length > _MAX_DIRECTORY_BYTES:
        raise InvalidRecordError("too many members", where="end of file", actual=str(count))
    return raw


def _members(directory: bytes) -> Iterable[Member]:
    """The members that the central directory names, in its order."""
    at, last = 0, (-1, b"")
    while at < len(directory):
        raw = directory[at : at + _CENTRAL.size]
        if len(raw) < _CENTRAL.size:
            raise InvalidRecordError("a directory record is cut off", where=f"record at {at}")
        crc32, _, size, length = _CENTRAL.unpack(raw)[7:11]
        at += _CENTRAL.size + length
        name = directory[at - length : at]
        try:
            path = name.decode()
        except UnicodeDecodeError:
            raise InvalidRecordError("a name is not UTF-8", actual=repr(name)[:90]) from None
        if order(path) <= last:
            raise InvalidRecordError("members out of order or repeated", where=ascii(path)[:90])
        last = order(path)
        yield Member(path=path, size=size, crc32=crc32)


def _check_central(directory: bytes, tail: bytes, members: Iterable[Member]) -> None:
    at = 0
    for member in members:
        want = _CENTRAL.unpack_from(tail, at)
        raw = directory[at : at + _CENTRAL.size]
        _check_fields(_CENTRAL_FIELDS, raw, want, _CENTRAL, member.path)
        at += _CENTRAL.size + len(member.path.encode())


def _check_lead(raw: bytes, piece: Placed) -> None:
    """Compare padding and local header with what they must be; say what differs."""
    if raw == piece.lead:
        return
    path = piece.member.path
    name = path.encode()
    padding = len(piece.lead) - _LOCAL.size - len(name)
    if any(raw[:padding]):
        raise InvalidRecordError("hidden bytes before a member", where=path, expected="zeros")
    header = raw[padding : padding + _LOCAL.size]
    want = _LOCAL.unpack_from(piece.lead, padding)
    _check_fields(_LOCAL_FIELDS, header, want, _LOCAL, path)
    raise InvalidRecordError(
        "the local header has another name", where=path, actual=repr(raw[-len(name) :])[:90]
    )


def _check_fields(
    names: Sequence[str], raw: bytes, want: tuple[object, ...], form: struct.Struct, where: str
) -> None:
    """Refuse the first field of the record `raw` that is not as in `want`."""
    found = form.unpack(raw) if len(raw) == form.size else (raw,)
    for name, actual, expected in zip(names, found, want, strict=False):
        if actual != expected:
            raise InvalidRecordError(
                f"wrong {name} in a ZIP record",
                where=where,
                expected=str(expected),
                actual=str(actual),
            )
