"""Two logs part in one operation, two tensors in one element."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.core.bisect import (
    Operation,
    OperationParting,
    Tensor,
    first_element,
    first_operation,
    read_log,
    ulps_apart,
)
from kolm_build.errors import InvalidRecordError

finite = st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-1e-43, 1e-43)


def op(name, *outputs) -> Operation:
    return Operation(name=name, outputs=outputs)


def floats(*values, shape=None) -> Tensor:
    data = struct.pack(f"<{len(values)}f", *values)
    return Tensor(role="output 0", dtype="F32", shape=shape or (len(values),), data=data)


def f32(value) -> bytes:
    return struct.pack("<f", value)


LOG = [op("mm", "a"), op("add", "b"), op("mm", "c", "d")]


def test_equal_logs_do_not_part():
    assert first_operation(LOG, list(LOG)) is None


def test_the_first_other_digest_names_operation_occurrence_and_output():
    """BIS-4."""
    other = [*LOG[:2], op("mm", "c", "x")]
    assert first_operation(LOG, other) == OperationParting(
        number=2, names=("mm", "mm"), occurrence=1, output=1
    )


@pytest.mark.parametrize(
    ("other", "number", "names"),
    [
        ([LOG[0], op("sub", "b"), LOG[2]], 1, ("add", "sub")),
        (LOG[:2], 2, ("mm", None)),
        ([*LOG, op("sub", "e")], 3, (None, "sub")),
    ],
)
def test_another_program_is_no_difference_of_values(other, number, names):
    """BIS-4."""
    found = first_operation(LOG, other)
    assert (found.number, found.names, found.output) == (number, names, None)


def test_a_log_is_read_as_it_is_written():
    assert read_log(b"".join(one.to_line() for one in LOG)) == tuple(LOG)
    with pytest.raises(InvalidRecordError) as caught:
        read_log(LOG[0].to_line() + b'{"name":"mm"}\n{"name":1}\n')
    assert caught.value.where.startswith("line 3")


def test_the_first_other_element_has_index_coordinates_values_and_distance():
    """BIS-4."""
    one = floats(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, shape=(2, 3))
    above = struct.unpack("<f", (int.from_bytes(f32(5.0), "little") + 2).to_bytes(4, "little"))[0]
    found = first_element(one, floats(1.0, 2.0, 3.0, 4.0, above, 7.0, shape=(2, 3)))
    assert (found.index, found.coordinates) == (4, (1, 1))
    assert found.values == ((5.0).hex(), above.hex())
    assert (found.ulps, found.differing, found.elements) == (2, 2, 6)


def test_tensors_of_other_shapes_are_refused():
    with pytest.raises(InvalidRecordError):
        first_element(floats(1.0, 2.0), floats(1.0, 2.0, shape=(2, 1)))


def test_a_large_tensor_parts_in_its_last_element():
    one, other = bytes(1 << 20), bytes((1 << 20) - 1) + b"\1"
    kind = {"role": "output 0", "dtype": "I16", "shape": (1 << 19,)}
    found = first_element(Tensor(data=one, **kind), Tensor(data=other, **kind))
    assert (found.index, found.ulps, found.differing) == ((1 << 19) - 1, 256, 1)


@given(finite, st.integers(min_value=0, max_value=300))
def test_an_ulp_is_a_step_between_numbers(value, steps):
    """BIS-5: numpy, which steps from -0 past +0, is the oracle."""
    import numpy as np

    start = here = np.float32(value)
    for _ in range(steps):
        here = np.nextafter(here, np.float32(np.inf))
    passes_zero = bool(np.signbit(start) and not np.signbit(here))
    assert ulps_apart("F32", f32(start), f32(here)) == steps + passes_zero


@pytest.mark.parametrize(
    ("dtype", "one", "other", "ulps"),
    [
        ("F32", f32(0.0), f32(-0.0), 1),
        ("F32", f32(1e-45), f32(-1e-45), 3),
        ("F32", f32(float("nan")), f32(1.0), None),
        ("BF16", b"\x80\x3f", b"\x81\x3f", 1),
        ("F16", struct.pack("<e", 1.0), struct.pack("<e", 1.0 + 2**-10), 1),
        ("F64", struct.pack("<d", 1.0), struct.pack("<d", 1.0 + 2**-52), 1),
        ("I64", struct.pack("<q", -3), struct.pack("<q", 4), 7),
        ("BOOL", b"\0", b"\1", 1),
    ],
)
def test_distances_of_other_dtypes(dtype, one, other, ulps):
    """BIS-5."""
    assert ulps_apart(dtype, one, other) == ulps
    assert ulps_apart(dtype, other, one) == ulps
