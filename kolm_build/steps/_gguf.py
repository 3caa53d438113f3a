"""Reading a GGUF file, strictly: its metadata, and where each tensor's bytes are (spec/gguf.md).

Every length is checked against what is left of the file before anything is read or allocated, so
a cut or hostile file is an error that names what is wrong and where.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from kolm_build.errors import InvalidRecordError, UnsupportedVersionError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_ENTRIES = 1 << 16
MAX_DIMENSIONS = 4
MAX_SIZE = 1 << 40
DEFAULT_ALIGNMENT = 32

Value = bool | int | float | str | Sequence[bool | int | float | str]

_TEXT, _ARRAY = 8, 9
_FORMATS: Mapping[int, str] = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of a file.

    Attributes:
        name: Its name.
        shape: Its sizes, slowest first (the file has them the other way round).
        kind: How its values are stored.
        begin: Offset of its first byte in the file.
        end: Offset after its last byte.
    """

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    begin: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gguf:
    """What a file says.

    Attributes:
        values: The metadata.
        tensors: Name to tensor.
        data: The file's bytes.
    """

    values: Mapping[str, Value]
    tensors: Mapping[str, Tensor]
    data: memoryview = field(repr=False)


def read_gguf(path: Path) -> Gguf:
    """The GGUF file `path`, mapped into memory.

    Raises:
        InvalidRecordError: It is not a whole, little-endian GGUF file of version 2 or 3.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise InvalidRecordError("not a GGUF file", file=path.name, actual="an empty file")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        return _read(_Cursor(data))
    except InvalidRecordError as error:
        raise error.in_file(path.name) from None


class _Cursor:
    """The bytes of a file and the place of the next one to read."""

    __slots__ = ("at", "data")

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int, what: str) -> memoryview:
        left = len(self.data) - self.at
        if count > left:
            raise InvalidRecordError(
                "the file ends early or has a wrong length in it",
                where=f"{what}, byte {self.at}",
                expected=f"{count} bytes",
                actual=f"{left} bytes left of {len(self.data)}",
                advice="It may be a partial download.",
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str, what: str) -> int:
        return int(self.scalars(form, 1, what)[0])

    def scalars(self, form: str, count: int, what: str) -> Sequence[bool | int | float]:
        return struct.unpack(f"<{count}{form}", self.take(count * struct.calcsize(form), what))

    def text(self, what: str) -> str:
        data = bytes(self.take(self.number("Q", what), what))
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise InvalidRecordError(
                "text that is not UTF-8", where=what, actual=repr(data)[:80]
            ) from None


def _read(cursor: _Cursor) -> Gguf:
    tensor_count, value_count = _read_head(cursor)
    values: dict[str, Value] = {}
    for index in range(value_count):
        name = cursor.text(f"metadata[{index}]")
        _check_new(name, values)
        values[name] = _read_value(cursor, name)
    infos = [_read_info(cursor, f"tensors[{index}]") for index in range(tensor_count)]
    alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= 1 << 20:
        raise InvalidRecordError("alignment out of range", where="general.alignment")
    start = cursor.at + -cursor.at % alignment
    tensors: dict[str, Tensor] = {}
    for make in infos:
        tensor = make(start)
        _check_new(tensor.name, tensors)
        tensors[tensor.name] = tensor
    _check_places(tensors, alignment, len(cursor.data))
    return Gguf(values=values, tensors=tensors, data=cursor.data)


def _read_head(cursor: _Cursor) -> tuple[int, int]:
    """The number of tensors and of metadata entries."""
    magic = bytes(cursor.take(4, "magic"))
    if magic != MAGIC:
        raise InvalidRecordError(
            "not a GGUF file", where="magic", expected=repr(MAGIC), actual=repr(magic)
        )
    version = cursor.number("I", "version")
    if version not in VERSIONS:
        raise UnsupportedVersionError(
            "a GGUF version that is not supported",
            where="version",
            expected="2 or 3, little-endian",
            actual=str(version),
        )
    counts = (cursor.number("Q", "tensor count"), cursor.number("Q", "metadata count"))
    if max(counts) > MAX_ENTRIES:
        raise InvalidRecordError(
            "too many entries", expected=f"at most {MAX_ENTRIES}", actual=str(max(counts))
        )
    return counts


def _read_value(cursor: _Cursor, name: str) -> Value:
    kind = cursor.number("I", name)
    if kind == _TEXT:
        return cursor.text(name)
    if kind == _ARRAY:
        return _read_array(cursor, name)
    return cursor.scalars(_format(kind, name), 1, name)[0]


def _read_array(cursor: _Cursor, name: str) -> Value:
    kind = cursor.number("I", name)
    count = cursor.number("Q", name)
    if kind == _TEXT:
        _check_fits(cursor, count * 8, name)
        return tuple(cursor.text(f"{name}[{index}]") for index in range(count))
    return cursor.scalars(_format(kind, name), count, name)


def _check_fits(cursor: _Cursor, count: int, what: str) -> None:
    """Refuse a count that the rest of the file cannot hold, before looping over it."""
    at = cursor.at
    cursor.take(count, what)
    cursor.at = at


def _format(kind: int, name: str) -> str:
    if kind not in _FORMATS:
        raise InvalidRecordError("unknown value type", where=name, actual=str(kind))
    return _FORMATS[kind]


def _read_info(cursor: _Cursor, where: str) -> Callable[[int], Tensor]:
    """One tensor's entry; its place follows from where the data starts."""
    name = cursor.text(where)
    dimensions = cursor.number("I", name)
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise InvalidRecordError("dimensions out of range", where=name, actual=str(dimensions))
    shape = tuple(int(size) for size in reversed(cursor.scalars("Q", dimensions, name)))
    kind = _kind(cursor.number("I", name), name)
    offset = cursor.number("Q", name)
    values, size_bytes = GGML_QUANT_SIZES[kind]
    if prod(shape) > MAX_SIZE or shape[-1] % values:
        raise InvalidRecordError(
            "shape out of range", where=name, actual=f"{shape} in blocks of {values} values"
        )
    length = prod(shape) // values * size_bytes

    def place(start: int) -> Tensor:
        begin = start + offset
        return Tensor(name=name, shape=shape, kind=kind, begin=begin, end=begin + length)

    return place


def _kind(number: int, name: str) -> GGMLQuantizationType:
    try:
        return GGMLQuantizationType(number)
    except ValueError:
        raise InvalidRecordError("unknown tensor type", where=name, actual=str(number)) from None


def _check_new(name: str, known: Mapping[str, object]) -> None:
    if name in known:
        raise InvalidRecordError("a name is there twice", where=ascii(name)[:80])


def _check_places(tensors: Mapping[str, Tensor], alignment: int, size_bytes: int) -> None:
    """Every tensor is inside the file, aligned, and none lies over another."""
    last = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin % alignment or tensor.begin < last:
            raise InvalidRecordError(
                "a tensor is misplaced", where=tensor.name, actual=f"at byte {tensor.begin}"
            )
        if tensor.end > size_bytes:
            raise InvalidRecordError(
                "the file ends before its tensors do",
                where=tensor.name,
                expected=f"at least {tensor.end} bytes",
                actual=f"{size_bytes} bytes",
                advice="It may be a partial download.",
            )
        last = tensor.end
