"""Writing a GGUF file: version 3, little-endian, one tensor in memory at a time (EXPORT-9).

The form of an entry follows from its Python type, so that the same metadata is the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from kolm_build.errors import InvalidRecordError
from kolm_build.steps._gguf import DEFAULT_ALIGNMENT, MAGIC
from kolm_build.steps._weights import Array

VERSION = 3

Entry = bool | int | float | str | tuple[str, ...] | tuple[int, ...]
"""A bool, uint32, float32, text, list of text or list of int32."""

_UINT32, _INT32, _FLOAT32, _BOOL, _TEXT, _ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor to write.

    Attributes:
        name: Its name.
        shape: Its sizes, slowest first.
        kind: How its values are stored.
        read: Gives its bytes, an array without gaps; called once.
    """

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    read: Callable[[], Array]

    @property
    def size_bytes(self) -> int:
        """The length of its data."""
        values, block_bytes = GGML_QUANT_SIZES[self.kind]
        return prod(self.shape) // values * block_bytes


def write_gguf(
    path: Path,
    entries: Mapping[str, Entry],
    tensors: Sequence[Stored],
    on_bytes: Callable[[int, int], None],
) -> None:
    """Write the new file `path`.

    Args:
        path: The file.
        entries: The metadata, in the order of the file.
        tensors: The tensors, in the order of the file.
        on_bytes: Is told the bytes written and the bytes in all.

    Raises:
        InvalidRecordError: A tensor's bytes are not as many as its shape asks for.
    """
    head = _head(entries, tensors)
    total = len(head) + sum(_padded(tensor.size_bytes) for tensor in tensors)
    with path.open("xb") as file:
        done = file.write(head)
        for tensor in tensors:
            data = tensor.read().reshape(-1).view(np.uint8).data
            if len(data) != tensor.size_bytes:
                raise InvalidRecordError("a tensor's bytes do not fit its shape", where=tensor.name)
            done += file.write(data)
            done += file.write(bytes(-len(data) % DEFAULT_ALIGNMENT))
            on_bytes(done, total)


def _head(entries: Mapping[str, Entry], tensors: Sequence[Stored]) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(entries))]
    parts += [_text(name) + _entry(entry) for name, entry in entries.items()]
    at = 0
    for tensor in tensors:
        parts.append(_info(tensor, at))
        at += _padded(tensor.size_bytes)
    head = b"".join(parts)
    return head + bytes(-len(head) % DEFAULT_ALIGNMENT)


def _info(tensor: Stored, at: int) -> bytes:
    sizes = tensor.shape[::-1]
    form = f"<I{len(sizes)}QIQ"
    return _text(tensor.name) + struct.pack(form, len(sizes), *sizes, tensor.kind, at)


def _entry(entry: Entry) -> bytes:
    match entry:
        case bool():
            return struct.pack("<I?", _BOOL, entry)
        case int():
            return struct.pack("<II", _UINT32, entry)
        case float():
            return struct.pack("<If", _FLOAT32, entry)
        case str():
            return struct.pack("<I", _TEXT) + _text(entry)
        case tuple():
            return struct.pack("<I", _ARRAY) + _array(entry)


def _array(items: tuple[str, ...] | tuple[int, ...]) -> bytes:
    texts = [_text(item) for item in items if isinstance(item, str)]
    if texts:
        return struct.pack("<IQ", _TEXT, len(texts)) + b"".join(texts)
    return struct.pack(f"<IQ{len(items)}i", _INT32, len(items), *items)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(count: int) -> int:
    return count + -count % DEFAULT_ALIGNMENT
