"""Comparing what a person names: two artifacts or two trees, path by path, tensor by tensor.

No numpy: a tensor's bytes are compared in pieces, and numbers are read with the standard library
only where the bytes differ.
"""

from __future__ import annotations

import math
import os
import struct
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import sub

from kolm_build.attest.container import Container
from kolm_build.core.digest import Digest
from kolm_build.core.safetensors import (
    DTYPE_BYTES,
    PREFIX_BYTES,
    Header,
    TensorEntry,
    header_length,
    parse_header,
)
from kolm_build.core.tree import File, Folder
from kolm_build.errors import KolmError
from kolm_build.store.local import LocalStore

PIECE_BYTES = 1 << 18

Read = Callable[[int, int], bytes]
"""Bytes of a file, from an offset, so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A file or link on one side.

    Attributes:
        identity: What it is, as text: equal exactly where the bytes are.
        size_bytes: Its size.
        read: Reads it.
    """

    identity: str
    size_bytes: int
    read: Read


Side = Mapping[str, Leaf]
"""Path to what is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorChange:
    """A tensor that differs.

    Attributes:
        name: Its name.
        what: Such as ``added``, ``F32 [4, 4] -> BF16 [4, 4]`` or ``values``.
        first_index: Index of the first element that differs; None unless values do.
        largest: The largest absolute difference as text; None where it is not computed.
    """

    name: str
    what: str
    first_index: int | None = None
    largest: str | None = None

    def to_value(self) -> dict[str, object]:
        """The change as a JSON object."""
        return {
            "tensor": self.name,
            "what": self.what,
            "first_index": self.first_index,
            "largest": self.largest,
        }

    def __str__(self) -> str:
        if self.first_index is None:
            return f"{self.name}: {self.what}"
        more = f", at most {self.largest} apart" if self.largest is not None else ""
        return f"{self.name}: values differ from element {self.first_index} on{more}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PathChange:
    """A path that differs.

    Attributes:
        path: The path.
        before: What is there on the first side; None for nothing.
        after: The same on the second.
        tensors: Which tensors differ, where both are weights.
    """

    path: str
    before: str | None
    after: str | None
    tensors: tuple[TensorChange, ...] = ()

    def to_value(self) -> dict[str, object]:
        """The change as a JSON object."""
        return {
            "path": self.path,
            "before": self.before,
            "after": self.after,
            "tensors": [tensor.to_value() for tensor in self.tensors],
        }


def side_of_tree(tree: Digest, store: LocalStore) -> Side:
    """Every path of a tree in `store`."""
    return dict(_leaves(tree, store, ""))


def side_of_artifact(container: Container) -> Side:
    """Every body member of an open artifact."""
    return {
        path: Leaf(
            identity=entry.b3,
            size_bytes=entry.size,
            read=_reader_at(container.fd, container.placed[path].offset),
        )
        for path, entry in container.entries.items()
    }


def changes_between(before: Side, after: Side) -> Iterator[PathChange]:
    """Every path at which the sides differ, in order."""
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old is not None and new is not None:
            if old.identity == new.identity:
                continue
            tensors = tuple(_tensors(old, new)) if path.endswith(".safetensors") else ()
            yield PathChange(path=path, before=old.identity, after=new.identity, tensors=tensors)
        else:
            yield PathChange(
                path=path,
                before=old.identity if old else None,
                after=new.identity if new else None,
            )


def _leaves(tree: Digest, store: LocalStore, prefix: str) -> Iterator[tuple[str, Leaf]]:
    for name, node in store.tree(tree).entries:
        if isinstance(node, Folder):
            yield from _leaves(node.tree, store, f"{prefix}{name}/")
        elif isinstance(node, File):
            mode = " executable" if node.executable else ""
            read = _StoredBlob(store, node.b3)
            yield (
                prefix + name,
                Leaf(identity=f"{node.b3}{mode}", size_bytes=node.size_bytes, read=read),
            )
        else:
            target = node.target.encode()
            yield (
                prefix + name,
                Leaf(
                    identity=f"link to {node.target}",
                    size_bytes=len(target),
                    read=lambda _a, _b: b"",
                ),
            )


class _StoredBlob:
    """Reads parts of a blob; the whole of it is read, and checked, once."""

    def __init__(self, store: LocalStore, b3: Digest) -> None:
        self._store = store
        self._b3 = b3
        self._data: bytes | None = None

    def __call__(self, offset: int, length: int) -> bytes:
        if self._data is None:
            self._data = self._store.read_blob(self._b3)
        return self._data[offset : offset + length]


def _reader_at(fd: int, start: int) -> Read:
    return lambda offset, length: os.pread(fd, length, start + offset)


def _tensors(old: Leaf, new: Leaf) -> Iterator[TensorChange]:
    try:
        left, right = _header(old), _header(new)
    except KolmError:
        return  # one of them is not what its name says: the paths alone must do
    before = {tensor.name: tensor for tensor in left.tensors}
    after = {tensor.name: tensor for tensor in right.tensors}
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name), after.get(name)
        if one is None or other is None:
            yield TensorChange(name=name, what="added" if one is None else "removed")
        elif (one.dtype, one.shape) != (other.dtype, other.shape):
            yield TensorChange(name=name, what=f"{_kind(one)} -> {_kind(other)}")
        else:
            change = _values(one, _part(old, left, one), _part(new, right, other))
            if change is not None:
                yield change


def _header(leaf: Leaf) -> Header:
    length = header_length(leaf.read(0, PREFIX_BYTES), leaf.size_bytes)
    return parse_header(leaf.read(PREFIX_BYTES, length), leaf.size_bytes)


def _part(leaf: Leaf, header: Header, tensor: TensorEntry) -> Read:
    start = header.data_start + tensor.begin
    return lambda offset, length: leaf.read(start + offset, length)


def _kind(tensor: TensorEntry) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _values(tensor: TensorEntry, old: Read, new: Read) -> TensorChange | None:
    width = DTYPE_BYTES[tensor.dtype]
    numbers = _NUMBERS.get(tensor.dtype)
    first, largest = None, 0.0
    for at in range(0, tensor.end - tensor.begin, PIECE_BYTES):
        length = min(PIECE_BYTES, tensor.end - tensor.begin - at)
        one, other = old(at, length), new(at, length)
        if one == other:
            continue
        if first is None:
            first = (at + _first_difference(one, other)) // width
        if numbers is not None:
            largest = _larger(largest, _apart(numbers(one), numbers(other)))
    if first is None:
        return None
    return TensorChange(
        name=tensor.name,
        what="values",
        first_index=first,
        largest=None if numbers is None else f"{largest:.6g}",
    )


def _first_difference(one: bytes, other: bytes) -> int:
    return next(at for at, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)


def _apart(one: array[float], other: array[float]) -> float:
    """The largest absolute difference; NaN where any is."""
    apart = list(map(abs, map(sub, one, other)))
    return math.nan if any(map(math.isnan, apart)) else max(apart)


def _larger(one: float, other: float) -> float:
    return math.nan if math.isnan(one) or math.isnan(other) else max(one, other)


def _float32(data: bytes) -> array[float]:
    return array("f", data)


def _float64(data: bytes) -> array[float]:
    return array("d", data)


def _bfloat16(data: bytes) -> array[float]:
    # A bfloat16 is the upper half of a float32.
    wide = bytearray(2 * len(data))
    wide[2::4], wide[3::4] = data[0::2], data[1::2]
    return array("f", bytes(wide))


def _float16(data: bytes) -> array[float]:
    return array("d", struct.unpack(f"<{len(data) // 2}e", data))


_NUMBERS: Mapping[str, Callable[[bytes], array[float]]] = {
    "BF16": _bfloat16,
    "F16": _float16,
    "F32": _float32,
    "F64": _float64,
}
