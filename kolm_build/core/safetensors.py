"""The header of a safetensors file: a strict reader and the canonical writer (spec/safetensors.md).

The reader refuses what the common library lets pass (repeated keys, unknown fields, strange
names, holes, huge headers) and looks at nothing but the header, before anything is allocated for
a tensor. The writer has one output for one set of tensors; the common library's depends on the
process. Standard library only: the verifier reads with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from kolm_build.core import cbor, strict_json
from kolm_build.errors import InvalidRecordError

PREFIX_BYTES = 8
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 200_000
MAX_DIMENSIONS = 8
MAX_SIZE = 1 << 40
ALIGNMENT = 64
WEIGHTS_VERSION = 1

DTYPE_BYTES: Mapping[str, int] = {
    "BF16": 2,
    "BOOL": 1,
    "C64": 8,
    "F16": 2,
    "F32": 4,
    "F64": 8,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "I32": 4,
    "I64": 8,
    "I8": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
    "U8": 1,
}

Tensor = tuple[str, str, tuple[int, ...]]
"""A tensor before it has a place: name, dtype, shape."""

_NAME = re.compile(r"[A-Za-z0-9_.\-/]{1,512}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor of a file.

    Attributes:
        name: The tensor's name.
        dtype: A key of `DTYPE_BYTES`.
        shape: Its sizes; empty for a scalar.
        begin: Offset of its first byte, counted from the header's `data_start`.
        end: Offset after its last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a header says.

    Attributes:
        metadata: The free text entries.
        tensors: The tensors, in the order of their data.
        data_start: Offset of the first data byte in the file.
    """

    metadata: Mapping[str, str]
    tensors: tuple[TensorEntry, ...]
    data_start: int


def header_length(first8: bytes, file_size: int) -> int:
    """The header's number of bytes, from the first 8 bytes of a file of `file_size` bytes.

    Raises:
        InvalidRecordError: The file is too short, or the header too long for it or at all.
    """
    if len(first8) != PREFIX_BYTES or file_size < PREFIX_BYTES + 2:
        raise InvalidRecordError("too short for a safetensors file", actual=f"{file_size} bytes")
    length = int.from_bytes(first8, "little")
    limit = min(MAX_HEADER_BYTES, file_size - PREFIX_BYTES)
    if not 2 <= length <= limit:
        raise InvalidRecordError(
            "the header's length is out of range",
            where="header",
            expected=f"2 to {limit} bytes",
            actual=str(length),
        )
    return length


def parse_header(header: bytes, file_size: int) -> Header:
    """What `header`, the bytes after the length, says of a file of `file_size` bytes.

    Raises:
        InvalidRecordError: It is not strict JSON, a field is missing or unknown, a name, dtype
            or shape is not one this project handles, or the tensors do not cover the data of the
            file exactly.
    """
    if len(header) > MAX_HEADER_BYTES:
        raise InvalidRecordError("the header is too large", actual=f"{len(header)} bytes")
    table = _table(header)
    metadata = _metadata(table.pop("__metadata__", {}))
    if len(table) > MAX_TENSORS:
        raise InvalidRecordError("too many tensors", expected=f"at most {MAX_TENSORS}")
    tensors = sorted(
        (_tensor(name, value) for name, value in table.items()),
        key=lambda tensor: (tensor.begin, tensor.end, tensor.name),
    )
    data_start = PREFIX_BYTES + len(header)
    _check_cover(tensors, file_size - data_start)
    return Header(metadata=metadata, tensors=tuple(tensors), data_start=data_start)


def data_order(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """`tensors` in the order of a canonical file: wide elements first, then by name."""
    return tuple(sorted(tensors, key=lambda tensor: (-DTYPE_BYTES[tensor[1]], tensor[0])))


def encode_header(tensors: Iterable[Tensor], metadata: Mapping[str, str]) -> bytes:
    """The canonical start of a file: length, header and padding; the tensors' bytes follow.

    The data goes after it in `data_order`, with nothing between.

    Raises:
        InvalidRecordError: A name, dtype, shape or metadata entry that `parse_header` refuses.
    """
    table: dict[str, object] = {}
    if metadata:
        table["__metadata__"] = _metadata(dict(sorted(metadata.items())))
    at = 0
    for name, dtype, shape in _checked(tensors):
        size = DTYPE_BYTES[dtype] * prod(shape)
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(PREFIX_BYTES + len(text)) % ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise InvalidRecordError("the header is too large", actual=f"{len(text)} bytes")
    return len(text).to_bytes(PREFIX_BYTES, "little") + text


def is_canonical(header: bytes, parsed: Header) -> bool:
    """Whether `header` is what `encode_header` writes for what it says."""
    tensors = ((tensor.name, tensor.dtype, tensor.shape) for tensor in parsed.tensors)
    return encode_header(tensors, parsed.metadata)[PREFIX_BYTES:] == header


def weights_record(tensors: Iterable[tuple[str, str, tuple[int, ...], bytes]]) -> bytes:
    """The record whose digest (kind `WEIGHTS`) is the weights id.

    Args:
        tensors: Name, dtype, shape and the BLAKE3 of its bytes, of every tensor of a model, in
            any order and from any number of files.

    Raises:
        InvalidRecordError: A tensor is bad or named twice.
    """
    rows = sorted(tensors)
    _check_names([name for name, _, _, _ in rows])
    spelt = cbor.array([_weights_row(*row[:3]) + cbor.encode(row[3]) for row in rows])
    return cbor.encode({"v": WEIGHTS_VERSION, "tensors": []})[:-1] + spelt


@lru_cache(maxsize=8192)
def _weights_row(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    """A row of the record up to its hash: a training has the same ones after every step."""
    _check_tensor(name, dtype, shape)
    return cbor.encode([name, dtype, list(shape), b""])[:-1]


def _table(header: bytes) -> dict[str, strict_json.Value]:
    """The header as a JSON object: no repeated key, no float, nothing around it but padding."""
    if header[:1] != b"{" or header.rstrip(b" ")[-1:] != b"}":
        raise InvalidRecordError(
            "not a strict safetensors header",
            where="header",
            expected="a JSON object followed by nothing but spaces",
        )
    try:
        table = strict_json.loads(header)
    except InvalidRecordError as error:
        raise error.under("header") from None
    return table  # type: ignore[return-value]  # it starts with a brace


def _repeated(names: Iterable[str]) -> str | None:
    """The first of `names` that is there twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _metadata(value: object) -> dict[str, str]:
    if type(value) is not dict:
        raise InvalidRecordError("not a table of text", where="__metadata__")
    for key, text in value.items():
        try:
            good = type(key) is str and type(text) is str and (key + text).encode() is not None
        except UnicodeEncodeError:
            good = False
        if not good:
            raise InvalidRecordError("not text", where="__metadata__", actual=ascii(key)[:80])
    return value


def _tensor(name: str, value: object) -> TensorEntry:
    if type(value) is not dict or set(value) != {"dtype", "shape", "data_offsets"}:
        raise InvalidRecordError(
            "wrong fields", where=ascii(name)[:80], expected="dtype, shape, data_offsets"
        )
    shape, offsets = value["shape"], value["data_offsets"]
    if type(shape) is not list or type(offsets) is not list or len(offsets) != 2:
        raise InvalidRecordError("wrong types", where=ascii(name)[:80])
    _check_tensor(name, value["dtype"], tuple(shape))
    begin, end = offsets
    if not (_is_size(begin) and _is_size(end)):
        raise InvalidRecordError("offsets out of range", where=name, actual=repr(offsets)[:80])
    size = DTYPE_BYTES[value["dtype"]] * prod(shape)
    if end - begin != size:
        raise InvalidRecordError(
            "offsets do not fit dtype and shape",
            where=name,
            expected=f"{size} bytes",
            actual=repr(offsets),
        )
    return TensorEntry(name=name, dtype=value["dtype"], shape=tuple(shape), begin=begin, end=end)


def _check_tensor(name: str, dtype: object, shape: tuple[object, ...]) -> None:
    if not _NAME.fullmatch(name) or {"", ".", ".."} & set(name.split("/")):
        raise InvalidRecordError(
            "not a tensor name",
            where=ascii(name)[:80],
            expected="1 to 512 letters, digits, '_', '.', '-', and '/' between parts",
        )
    if type(dtype) is not str or dtype not in DTYPE_BYTES:
        raise InvalidRecordError(
            "unknown dtype", where=name, expected=", ".join(DTYPE_BYTES), actual=repr(dtype)[:80]
        )
    if len(shape) > MAX_DIMENSIONS or not all(_is_size(size) for size in shape):
        raise InvalidRecordError("shape out of range", where=name, actual=repr(shape)[:80])


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_SIZE


def _checked(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    given = tuple(tensors)
    for name, dtype, shape in given:
        _check_tensor(name, dtype, shape)
    _check_names([name for name, _, _ in given])
    return data_order(given)


def _check_names(names: Sequence[str]) -> None:
    twice = _repeated(names)
    if twice is not None:
        raise InvalidRecordError("a tensor named twice", where=twice)
    if len(names) > MAX_TENSORS:
        raise InvalidRecordError("too many tensors", expected=f"at most {MAX_TENSORS}")


def _check_cover(tensors: Iterable[TensorEntry], data_bytes: int) -> None:
    at = 0
    for tensor in tensors:
        if tensor.begin != at:
            raise InvalidRecordError(
                "the tensors overlap or leave a hole",
                where=tensor.name,
                expected=f"data at {at}",
                actual=f"data at {tensor.begin}",
            )
        at = tensor.end
    if at != data_bytes:
        raise InvalidRecordError(
            "the tensors do not cover the file",
            expected=f"{at} bytes of data",
            actual=f"{data_bytes} bytes",
        )
