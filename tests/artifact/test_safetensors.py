"""Safetensors headers: what is refused, and the one way they are written (spec/safetensors.md)."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.core import safetensors
from kolm_build.errors import InvalidRecordError

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def parse(table: Any, data_bytes: int, *, raw: bytes | None = None) -> safetensors.Header:
    header = json.dumps(table).encode() if raw is None else raw
    size = 8 + len(header) + data_bytes
    length = safetensors.header_length(struct.pack("<Q", len(header)), size)
    assert length == len(header)
    return safetensors.parse_header(header, size)


def test_an_ordinary_header_is_read():
    found = parse({"__metadata__": {"format": "pt"}, "a": ONE}, 8)
    assert found.metadata == {"format": "pt"}
    assert [(each.name, each.begin, each.end) for each in found.tensors] == [("a", 0, 8)]


@pytest.mark.parametrize("length", [0, 1, 100, 2**63, (16 << 20) + 1, 2**64 - 1])
def test_a_header_length_out_of_range_is_refused(length):
    """SAFE-1."""
    with pytest.raises(InvalidRecordError, match="length"):
        safetensors.header_length(struct.pack("<Q", length), 50)


def test_a_file_too_short_for_a_header_is_refused():
    """SAFE-1."""
    with pytest.raises(InvalidRecordError):
        safetensors.header_length(b"\x02", 1)


@pytest.mark.parametrize(
    "raw",
    [
        b' {"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}\n\t ',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}x',
        b"[]",
        b"null",
        b'"{}"',
        b"\xef\xbb\xbf{}",
        b'{"a\xff":1}',
        b"{" * 5000 + b"}",
        b'{"a":' + b"[" * 100_000 + b"}",
    ],
    ids=["space", "newline", "trailing", "array", "null", "text", "bom", "utf8", "braces", "depth"],
)
def test_what_is_not_one_plain_json_object_is_refused(raw):
    """SAFE-2, SAFE-3."""
    with pytest.raises(InvalidRecordError):
        parse(None, 8, raw=raw)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":%b,"a":%b}',
        b'{"__metadata__":{"k":"1"},"__metadata__":{"k":"2"},"a":%b}',
        b'{"__metadata__":{"k":"1","k":"2"},"a":%b}',
    ],
    ids=["tensor", "metadata", "inside metadata"],
)
def test_a_repeated_key_is_refused(raw):
    """SAFE-3."""
    one = json.dumps(ONE).encode()
    with pytest.raises(InvalidRecordError, match="repeated key"):
        parse(None, 8, raw=raw % ((one,) * raw.count(b"%b")))


@pytest.mark.parametrize("metadata", [[], "x", {"a": 1}, {"a": None}, {"a": {}}])
def test_metadata_that_is_not_text_is_refused(metadata):
    """SAFE-4."""
    with pytest.raises(InvalidRecordError) as caught:
        parse({"__metadata__": metadata, "a": ONE}, 8)
    assert caught.value.where == "__metadata__"


@pytest.mark.parametrize(
    "name", ["", "a\0b", "../../etc/x", "a/../b", "/a", "a//b", "a b", "é", "a\u202eb", "n" * 513]
)
def test_a_name_that_is_no_tensor_name_is_refused(name):
    """SAFE-5."""
    with pytest.raises(InvalidRecordError, match="not a tensor name"):
        parse({name: ONE}, 8)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (ONE | {"evil": 1}, "fields"),
        ({"dtype": "F32", "shape": [2]}, "fields"),
        (7, "fields"),
        (ONE | {"dtype": "PICKLE"}, "dtype"),
        (ONE | {"dtype": 4}, "dtype"),
        (ONE | {"shape": [-2]}, "shape"),
        (ONE | {"shape": [True, 2]}, "shape"),
        (ONE | {"shape": ["2"]}, "shape"),
        (ONE | {"shape": [1] * 9}, "shape"),
        (ONE | {"shape": [2**41, 0]}, "shape"),
        (ONE | {"shape": [2**40, 2**40]}, "offsets"),
        (ONE | {"shape": 2}, "types"),
        (ONE | {"data_offsets": [8, 0]}, "offsets"),
        (ONE | {"data_offsets": [0, 7]}, "offsets"),
        (ONE | {"data_offsets": [0, 8, 16]}, "types"),
        (ONE | {"data_offsets": [-8, 0]}, "offsets"),
        (ONE | {"data_offsets": [0, 2**63]}, "integer out of range"),
        (ONE | {"data_offsets": [0.0, 8.0]}, "not an integer"),
    ],
)
def test_a_tensor_that_is_not_well_formed_is_refused(tensor, reason):
    """SAFE-6, SAFE-7, SAFE-8, SAFE-9."""
    with pytest.raises(InvalidRecordError, match=reason):
        parse({"a": tensor}, 8)


@pytest.mark.parametrize(
    ("table", "data_bytes"),
    [
        ({"a": ONE, "b": ONE}, 8),
        ({"a": ONE, "b": ONE | {"data_offsets": [12, 20]}}, 20),
        ({"a": ONE | {"data_offsets": [4, 12]}}, 12),
        ({"a": ONE}, 12),
        ({"a": ONE}, 4),
        ({}, 1),
    ],
    ids=["overlap", "hole", "start", "trailing", "truncated", "empty"],
)
def test_tensors_that_do_not_cover_the_data_are_refused(table, data_bytes):
    """SAFE-10."""
    with pytest.raises(InvalidRecordError, match=r"overlap|cover"):
        parse(table, data_bytes)


def test_a_million_empty_tensors_are_refused_before_they_are_looked_at():
    """SAFE-11."""
    empty = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    raw = "{" + ",".join(f'"t{number}":{empty}' for number in range(200_001)) + "}"
    with pytest.raises(InvalidRecordError, match="too many tensors"):
        parse(None, 0, raw=raw.encode())


def test_nan_in_a_header_is_refused():
    """SAFE-3."""
    with pytest.raises(InvalidRecordError):
        parse(None, 8, raw=b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}')


NAMES = st.text("abz.0_-", min_size=1, max_size=8).filter(lambda name: name not in (".", ".."))
TENSORS = st.dictionaries(
    NAMES,
    st.tuples(
        st.sampled_from(sorted(safetensors.DTYPE_BYTES)),
        st.lists(st.integers(0, 3), max_size=3).map(tuple),
    ),
    max_size=6,
).map(lambda table: [(name, dtype, shape) for name, (dtype, shape) in table.items()])
METADATA = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3).filter(
    lambda table: "\ud800" not in "".join((*table, *table.values()))
)


@given(TENSORS, METADATA)
def test_a_written_header_reads_back_and_is_canonical(tensors, metadata):
    """SAFE-12, SAFE-13, SAFE-14."""
    written = safetensors.encode_header(tensors, metadata)
    ordered = safetensors.data_order(tensors)
    size = sum(safetensors.DTYPE_BYTES[dtype] * math.prod(shape) for _, dtype, shape in ordered)
    length = safetensors.header_length(written[:8], len(written) + size)
    found = safetensors.parse_header(written[8:], len(written) + size)
    assert length == len(written) - 8
    assert len(written) % 64 == 0
    assert found.metadata == metadata
    assert {(each.name, each.dtype, each.shape) for each in found.tensors} == set(tensors)
    assert safetensors.is_canonical(written[8:], found)


@given(TENSORS, METADATA, st.randoms(use_true_random=False))
def test_the_order_of_the_arguments_does_not_matter(tensors, metadata, random):
    """SAFE-12, SAFE-13."""
    shuffled = random.sample(tensors, len(tensors))
    backwards = dict(reversed(metadata.items()))
    assert safetensors.encode_header(shuffled, backwards) == safetensors.encode_header(
        tensors, metadata
    )


def test_the_common_library_reads_what_is_written(tmp_path):
    from safetensors.numpy import load_file

    tensors = [("b", "F32", (2,)), ("a", "I8", (3,)), ("c", "F64", ())]
    header = safetensors.encode_header(tensors, {"format": "np", "x": "y"})
    path = tmp_path / "x.safetensors"
    path.write_bytes(header + struct.pack("<d2f3b", 0.5, 1.0, 2.0, 1, 2, 3))
    found = load_file(path)
    assert found["c"].tolist() == 0.5
    assert found["b"].tolist() == [1.0, 2.0]
    assert found["a"].tolist() == [1, 2, 3]


def test_a_name_given_twice_is_refused_when_writing():
    with pytest.raises(InvalidRecordError, match="twice"):
        safetensors.encode_header([("a", "F32", ()), ("a", "I8", ())], {})


def test_the_weights_record_does_not_depend_on_order_or_files():
    """SAFE-15."""
    rows = [("b", "F32", (2,), b"x" * 32), ("a", "I8", (3, 1), b"y" * 32)]
    record = safetensors.weights_record(rows)
    assert record == safetensors.weights_record(reversed(rows))
    assert record != safetensors.weights_record([rows[0], ("a", "I8", (1, 3), b"y" * 32)])
    with pytest.raises(InvalidRecordError, match="twice"):
        safetensors.weights_record([rows[0], rows[0]])


VECTORS = json.loads((Path(__file__).parents[2] / "spec/vectors/safetensors.json").read_text())
WIDTHS = {"F32": 4, "BF16": 2, "I64": 8, "F16": 2}


def second_writer(tensors: list[Any], metadata: dict[str, str]) -> bytes:
    """The canonical start of a file, written as spec/safetensors.md says it."""
    fields, at = [], 0
    if metadata:
        inside = ",".join(f"{quoted(key)}:{quoted(metadata[key])}" for key in sorted(metadata))
        fields.append(f'"__metadata__":{{{inside}}}')
    for name, dtype, shape in sorted(tensors, key=lambda each: (-WIDTHS[each[1]], each[0])):
        end = at + WIDTHS[dtype] * math.prod(shape)
        sizes = ",".join(map(str, shape))
        text = f'"dtype":"{dtype}","shape":[{sizes}],"data_offsets":[{at},{end}]'
        fields.append(f'"{name}":{{{text}}}')
        at = end
    header = ("{" + ",".join(fields) + "}").encode()
    header += b" " * (-(len(header) + 8) % 64)
    return struct.pack("<Q", len(header)) + header


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def test_the_vectors_are_what_the_second_writer_writes():
    """SAFE-12, SAFE-13, SAFE-14."""
    for vector in VECTORS["headers"]:
        written = second_writer(vector["tensors"], vector["metadata"])
        assert written.hex() == vector["start"]


def test_the_headers_in_the_vectors_that_are_refused_are_refused():
    """SAFE-2 to SAFE-10."""
    for text in VECTORS["refused_before_8_bytes"]:
        with pytest.raises(InvalidRecordError):
            parse(None, 8, raw=text.encode())


def test_the_weights_id_in_the_vectors_is_that_of_a_second_implementation():
    """SAFE-15."""
    import cbor2
    from blake3 import blake3

    vector = VECTORS["weights"]
    rows = [[name, kind, shape, bytes.fromhex(b3)] for name, kind, shape, b3 in vector["tensors"]]
    record = cbor2.dumps({"v": 1, "tensors": sorted(rows)}, canonical=True)
    assert record.hex() == vector["record"]
    digest = blake3(record, derive_key_context="kolm_build 2026 weights v1").hexdigest()
    assert vector["id"] == f"b3:{digest}"
