"""Tensors as bytes: the canonical file, streamed, and exact changes of precision (spec/steps.md).

One tensor is in memory at a time. Nothing here rounds more than once, and rounding is IEEE
round-to-nearest-even, so the bytes are the same on every machine.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kolm_build.core.fields import Fields
from kolm_build.core.safetensors import (
    DTYPE_BYTES,
    PREFIX_BYTES,
    Header,
    data_order,
    encode_header,
    header_length,
    parse_header,
)
from kolm_build.errors import InvalidRecordError

METADATA: Mapping[str, str] = {"format": "pt"}
"""Older releases of transformers refuse a file without it."""

DTYPES: Mapping[str, str] = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
"""A recipe's name of a dtype to the file's."""

CONFIG_DTYPES: Mapping[str, str] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""A file's name of a dtype to the one in config.json."""

_EXPONENTS: Mapping[str, tuple[str, int]] = {
    "BF16": ("<u2", 0x7F80),
    "F16": ("<u2", 0x7C00),
    "F32": ("<u4", 0x7F800000),
    "F8_E4M3": ("<u1", 0x7F),  # the one pattern that is no number
}
"""How a value's bits lie in a word, and those that are all set where it is no number."""

_WHOLE = frozenset({"I8", "I32", "I64", "U8"})
"""What a quantised model holds beside floating-point numbers."""

_SOURCES = ("BF16", "F16", "F32")
"""What a model in full precision holds."""

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A tensor to write.

    Attributes:
        name: Its name.
        dtype: A name of the file format, such as ``BF16``.
        shape: Its sizes.
        read: Gives its bytes, little-endian, slowest dimension first; called once.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], memoryview]


def parse_dtype(params: Mapping[str, str | int], *, default: str | None = None) -> str:
    """The file dtype that a step's one parameter ``dtype`` names.

    Raises:
        InvalidRecordError: It is none, or there are other parameters.
    """
    fields = Fields(params)
    name = fields.text("dtype") if default is None else fields.text("dtype", default=default)
    fields.done()
    if name not in DTYPES and name != default:
        raise InvalidRecordError(
            "unknown dtype", where="params.dtype", expected=" or ".join(DTYPES), actual=repr(name)
        )
    return DTYPES.get(name, name)


def write_weights(
    path: Path,
    weights: Iterable[Weight],
    on_bytes: Callable[[int, int], None] | None = None,
    *,
    metadata: Mapping[str, str] = METADATA,
) -> None:
    """Write `weights` as the one canonical safetensors file at `path`.

    Args:
        path: The file to make.
        weights: The tensors, in any order.
        on_bytes: Is told the bytes written and the bytes in all.
        metadata: What the file's header says beside its tensors.

    Raises:
        InvalidRecordError: A tensor holds a value that is not finite, or cannot be written.
    """
    by_name = {weight.name: weight for weight in weights}
    tensors = [(weight.name, weight.dtype, weight.shape) for weight in by_name.values()]
    head = encode_header(tensors, metadata)
    total = len(head) + sum(size_bytes(weight) for weight in by_name.values())
    with path.open("xb") as file:
        done = file.write(head)
        for name, dtype, _ in data_order(tensors):
            data = by_name[name].read()
            check_finite(data, dtype, name)
            if len(data) != size_bytes(by_name[name]):
                raise InvalidRecordError("a tensor's bytes do not fit its shape", where=name)
            done += file.write(data)
            if on_bytes is not None:
                on_bytes(done, total)


def read_weights(path: Path, *, dtypes: Collection[str] = _SOURCES) -> tuple[Weight, ...]:
    """The tensors of the safetensors file `path`, mapped into memory.

    Args:
        path: The file.
        dtypes: What its tensors may be; those of a model in full precision where not said.

    Raises:
        InvalidRecordError: It is not a strict safetensors file of such tensors.
    """
    try:
        header, data = _mapped(path)
        for tensor in header.tensors:
            if tensor.dtype not in dtypes:
                raise InvalidRecordError(
                    "a tensor of a type that is not supported",
                    where=tensor.name,
                    expected=" or ".join(dtypes),
                    actual=tensor.dtype,
                    advice="Bring the model in full precision, not quantised.",
                )
    except InvalidRecordError as error:
        raise error.in_file(path.name) from None
    return tuple(
        Weight(
            name=tensor.name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            read=lambda begin=tensor.begin, end=tensor.end: data[begin:end],  # type: ignore[misc]
        )
        for tensor in header.tensors
    )


def size_bytes(weight: Weight) -> int:
    """The number of bytes of `weight`."""
    return DTYPE_BYTES[weight.dtype] * prod(weight.shape)


def converted(weight: Weight, dtype: str) -> Weight:
    """`weight` in the file dtype `dtype`, rounded once, to nearest even."""
    if weight.dtype == dtype:
        return weight

    def read() -> memoryview:
        return to_bytes(to_float32(weight.read(), weight.dtype), dtype)

    return Weight(name=weight.name, dtype=dtype, shape=weight.shape, read=read)


def to_bytes(values: Array, dtype: str) -> memoryview:
    """The little-endian bytes of the float32 array `values` in the file dtype `dtype`."""
    if dtype == "F32":
        stored = values.astype("<f4", copy=False)
    elif dtype == "F16":
        with np.errstate(over="ignore"):  # an overflow is infinite, and refused as such
            stored = values.astype("<f2")
    else:
        stored = _bf16(values)
    return np.ascontiguousarray(stored).reshape(-1).view(np.uint8).data


def check_finite(data: memoryview, dtype: str, name: str) -> None:
    """Refuse NaN and infinity; whole numbers and E8M0 scales have none.

    Raises:
        InvalidRecordError: `data` of the tensor `name` has one.
    """
    if dtype in _WHOLE:
        return
    form, exponent = _EXPONENTS[dtype]
    bits = np.frombuffer(data, dtype=form)
    bad = (bits & exponent) == exponent
    if bad.any():
        raise InvalidRecordError(
            "a weight that is not a finite number",
            where=name,
            actual=f"{int(bad.sum())} of {bits.size} values, first at {int(bad.argmax())}",
            advice="If the weights were converted to fp16, convert them to bf16 or fp32.",
        )


def _bf16(values: Array) -> Array:
    """The upper half of each float32, rounded to nearest even; NaN is refused elsewhere."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    return ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16).astype("<u2")


def to_float32(data: memoryview, dtype: str) -> Array:
    """The float32 values of the bytes `data` in the file dtype `dtype`: exact."""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, "<f2" if dtype == "F16" else "<f4").astype("<f4")


def _mapped(path: Path) -> tuple[Header, memoryview]:
    """The header of the file `path` and the data after it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = header_length(file.read(PREFIX_BYTES), size)
        header = parse_header(file.read(length), size)
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return header, data[header.data_start :]
