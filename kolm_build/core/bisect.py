"""Where two runs of a training step part: operation, element, distance (spec/bisect.md).

Pure: logs of operations and tensors' bytes come in, values go out. No framework is known here.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from kolm_build.core import strict_json
from kolm_build.core.fields import Fields
from kolm_build.core.safetensors import DTYPE_BYTES
from kolm_build.errors import InvalidRecordError

_PIECE_BYTES = 1 << 16
_UNSIGNED: Mapping[int, str] = {1: "B", 2: "H", 4: "I", 8: "Q"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of a step, in the order in which they ran.

    Attributes:
        name: The ATen overload, such as ``aten.mm.default``.
        outputs: Digest of each tensor that it made or changed; empty for a view.
    """

    name: str
    outputs: tuple[str, ...]

    def to_line(self) -> bytes:
        """The operation as a line of a log."""
        return strict_json.dumps({"name": self.name, "outputs": self.outputs}) + b"\n"


def read_log(data: bytes) -> tuple[Operation, ...]:
    """The operations in a log.

    Raises:
        InvalidRecordError: A line is not an operation; `where` is its number.
    """
    return tuple(_operation(number, line) for number, line in enumerate(data.splitlines(), 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationParting:
    """The first operation in which two logs differ.

    Attributes:
        number: Its number in the step, from 0.
        names: What it is called on each side; None where that side had ended.
        occurrence: Which of the step's operations of that name it is, from 0.
        output: Number of its first output that differs; None where the names differ.
    """

    number: int
    names: tuple[str | None, str | None]
    occurrence: int
    output: int | None


def first_operation(
    one: Sequence[Operation], other: Sequence[Operation]
) -> OperationParting | None:
    """Where two logs part; None where they are equal."""
    for number in range(max(len(one), len(other))):
        left = one[number] if number < len(one) else None
        right = other[number] if number < len(other) else None
        if left != right:
            before = one[:number]
            return OperationParting(
                number=number,
                names=(left.name if left else None, right.name if right else None),
                occurrence=sum(left is not None and each.name == left.name for each in before),
                output=_first_output(left, right),
            )
    return None


def _first_output(one: Operation | None, other: Operation | None) -> int | None:
    if one is None or other is None or one.name != other.name:
        return None
    if len(one.outputs) != len(other.outputs):
        return None
    pairs = zip(one.outputs, other.outputs, strict=True)
    return next(index for index, (left, right) in enumerate(pairs) if left != right)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor as bytes.

    Attributes:
        role: What it is to the operation: ``output 0``, or an argument such as ``self[3]``.
        dtype: Its safetensors dtype.
        shape: Its sizes.
        data: Its bytes, slowest dimension first, little-endian.
    """

    role: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementParting:
    """The first element in which two tensors differ.

    Attributes:
        index: Its number in row-major order, from 0.
        coordinates: The same, a number a dimension.
        values: Its value on each side, exactly: hexadecimal floating point, or an integer.
        decimals: The same for people.
        ulps: How many representable numbers apart they are; None where one is not a number.
        differing: How many elements differ.
        elements: How many there are.
    """

    index: int
    coordinates: tuple[int, ...]
    values: tuple[str, str]
    decimals: tuple[str, str]
    ulps: int | None
    differing: int
    elements: int

    def to_value(self) -> dict[str, object]:
        """The element as a JSON object."""
        return {
            "index": self.index,
            "coordinates": list(self.coordinates),
            "values": list(self.values),
            "decimals": list(self.decimals),
            "ulps": self.ulps,
            "differing": self.differing,
            "elements": self.elements,
        }


def first_element(one: Tensor, other: Tensor) -> ElementParting | None:
    """Where two tensors of one dtype and shape differ; None where they are equal.

    Raises:
        InvalidRecordError: They have not the same dtype and shape.
    """
    if (one.dtype, one.shape, len(one.data)) != (other.dtype, other.shape, len(other.data)):
        raise InvalidRecordError(
            "the tensors have not the same dtype and shape",
            where=one.role,
            expected=f"{one.dtype} {list(one.shape)}",
            actual=f"{other.dtype} {list(other.shape)}",
        )
    width = DTYPE_BYTES[one.dtype]
    differing = _differing(one.data, other.data, width)
    if not differing:
        return None
    index = differing[0]
    at = slice(index * width, (index + 1) * width)
    left, right = one.data[at], other.data[at]
    return ElementParting(
        index=index,
        coordinates=_coordinates(index, one.shape),
        values=(exact(one.dtype, left), exact(one.dtype, right)),
        decimals=(decimal(one.dtype, left), decimal(one.dtype, right)),
        ulps=ulps_apart(one.dtype, left, right),
        differing=len(differing),
        elements=len(one.data) // width,
    )


def exact(dtype: str, element: bytes) -> str:
    """The element's value, exactly: hexadecimal floating point, or an integer."""
    value = _value(dtype, element)
    return value.hex() if isinstance(value, float) else str(value)


def decimal(dtype: str, element: bytes) -> str:
    """The element's value for people."""
    value = _value(dtype, element)
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def ulps_apart(dtype: str, one: bytes, other: bytes) -> int | None:
    """How many steps from number to number lie between two elements; +0 and -0 are one apart.

    Returns:
        The number of steps; for integers the difference; None where one is not a number.
    """
    values = _value(dtype, one), _value(dtype, other)
    if any(isinstance(value, float) and math.isnan(value) for value in values):
        return None
    if not isinstance(values[0], float):
        return abs(int(values[0]) - int(values[1]))
    return abs(_ordered(one) - _ordered(other))


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What called an operation.

    Attributes:
        module: Path of the network's module that was running; empty outside of any.
        line: File, line and function, such as ``torch/x.py:12 in forward``.
        backward: The autograd node, where the operation is part of a gradient; module and line
            are those of the forward operation then.
    """

    module: str
    line: str
    backward: str | None

    def to_value(self) -> dict[str, object]:
        """The origin as a JSON object."""
        return {"module": self.module, "line": self.line, "backward": self.backward}

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        made = cls(
            module=fields.text("module"),
            line=fields.text("line"),
            backward=fields.nullable("backward", str),
        )
        fields.done()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The first operation whose result differs, and how.

    Attributes:
        parting: The operation.
        role: Which of its tensors differs first; None where the operations are not the same.
        dtype: That tensor's dtype.
        shape: Its sizes.
        element: Its first element that differs.
        origin: What called the operation.
    """

    parting: OperationParting
    role: str | None = None
    dtype: str | None = None
    shape: tuple[int, ...] = ()
    element: ElementParting | None = None
    origin: Origin | None = None

    def to_value(self) -> dict[str, object]:
        """The finding as a JSON object."""
        return {
            "number": self.parting.number,
            "names": list(self.parting.names),
            "occurrence": self.parting.occurrence,
            "tensor": self.role,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "element": None if self.element is None else self.element.to_value(),
            "origin": None if self.origin is None else self.origin.to_value(),
        }


def _operation(number: int, line: bytes) -> Operation:
    try:
        fields = Fields(strict_json.loads(line))
        made = Operation(name=fields.text("name"), outputs=tuple(map(str, fields.array("outputs"))))
        fields.done()
    except InvalidRecordError as error:
        raise error.under(f"line {number}") from None
    return made


def _differing(one: bytes, other: bytes, width: int) -> list[int]:
    """Numbers of the elements that differ."""
    found: list[int] = []
    for at in range(0, len(one), _PIECE_BYTES):
        left, right = one[at : at + _PIECE_BYTES], other[at : at + _PIECE_BYTES]
        if left != right:
            pair = zip(_bits(left, width), _bits(right, width), strict=True)
            found += [at // width + index for index, (a, b) in enumerate(pair) if a != b]
    return found


def _bits(data: bytes, width: int) -> array[int]:
    return array(_UNSIGNED[width], data)


def _coordinates(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    found = []
    for size in reversed(shape):
        index, rest = divmod(index, size)
        found.append(rest)
    return tuple(reversed(found))


def _ordered(element: bytes) -> int:
    """The float's bits as an integer that grows by one from number to number."""
    bits = int.from_bytes(element, "little")
    sign = 1 << (8 * len(element) - 1)
    return bits if bits < sign else sign - 1 - bits


def _value(dtype: str, element: bytes) -> float | int:
    return _READERS[dtype](element)


def _reader(form: str) -> Callable[[bytes], float | int]:
    def read(element: bytes) -> float | int:
        (value,) = struct.unpack(f"<{form}", element)
        return float(value) if form in "efd" else int(value)

    return read


def _bfloat16(element: bytes) -> float:
    (value,) = struct.unpack("<f", b"\0\0" + element)
    return float(value)


_READERS: Mapping[str, Callable[[bytes], float | int]] = {
    "BF16": _bfloat16,
    "BOOL": _reader("B"),
    "F16": _reader("e"),
    "F32": _reader("f"),
    "F64": _reader("d"),
    "I16": _reader("h"),
    "I32": _reader("i"),
    "I64": _reader("q"),
    "I8": _reader("b"),
    "U8": _reader("B"),
}
