"""spec/vectors/request.json holds for this package and for another encoder alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kolm_build.core.request import StepRequest
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
