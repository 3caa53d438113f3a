"""spec/vectors/request.json holds for this package and for another encoder alike."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kolm_build.core.numerics import Numerics
from kolm_build.core.request import Circumstances, StepRequest
from kolm_build.errors import InvalidRecordError
from tests.golden import independent

FILE = Path(__file__).parents[2] / "spec" / "vectors" / "request.json"


@pytest.mark.parametrize("vector", json.loads(FILE.read_text())["requests"])
def test_a_request_has_these_bytes(vector):
    """PROTO-2. Both encoders give the vector's bytes, and reading them gives the value."""
    value = independent.plain(vector["value"])
    data = bytes.fromhex(vector["cbor"])
    assert independent.encode(value) == data
    request = StepRequest.decode(data)
    assert request.encode() == data
    assert (request.step, request.events_fd) == (value["step"], value["events_fd"])
    assert dict(request.params) == value["params"]


def test_what_a_later_engine_says_of_circumstances_is_passed_over():
    """PROTO-14."""
    value = {"kernels": "/kolm/kernels.so", "threads": 2, "accelerator": "/dev/x"}
    assert Circumstances.from_value(value) == Circumstances(kernels="/kolm/kernels.so", threads=2)


def test_an_instruction_set_is_told_where_one_was_chosen():
    """PROTO-14."""
    plain = Circumstances(kernels="/kolm/kernels.so", threads=2)
    chosen = replace(plain, isa="avx2")
    assert "isa" not in plain.to_value()
    assert chosen.to_value() == {**plain.to_value(), "isa": "avx2"}
    assert Circumstances.from_value(chosen.to_value()) == chosen


@pytest.mark.parametrize("cls", ["exact-1", "native-1"])
def test_circumstances_are_told_to_portable_steps_alone(cls):
    """PROTO-14."""
    vector = json.loads(FILE.read_text())["requests"][1]
    portable = StepRequest.decode(bytes.fromhex(vector["cbor"]))
    for changes in ({"numerics": Numerics(cls=cls)}, {"circumstances": None}):
        with pytest.raises(InvalidRecordError):
            replace(portable, **changes)
