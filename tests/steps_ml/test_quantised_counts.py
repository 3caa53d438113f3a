"""Three countings of a quantised model agree: before it is built, by the verifier, by the step."""

from __future__ import annotations

import json

import pytest

from kolm_build.core.cost import Sizes, shapes
from kolm_build.core.forecast import quantised_bytes
from kolm_build.core.quantisation import SCHEMES
from kolm_build.core.safetensors import PREFIX_BYTES, header_length, parse_header
from kolm_build.core.sections import Quantise
from kolm_build.runtime.loading import load
from kolm_build.steps._counts import Architecture
from tests.steps_ml.calling import run_step, write_rows
from tests.support.models import tiny_llama

NAMES = sorted(SCHEMES)
ROWS = [("hello there " * 9, "bone")] * 4


def headers(folder):
    data = (folder / "model.safetensors").read_bytes()
    end = PREFIX_BYTES + header_length(data[:PREFIX_BYTES], len(data))
    return {one.name: one for one in parse_header(data[PREFIX_BYTES:end], len(data)).tensors}


def config(folder):
    return json.loads((folder / "config.json").read_text())


def params(scheme, **more):
    return {"scheme": scheme, "method": "rtn", "group": 0, "embeddings": "keep", "keep": ""} | more


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def quantised(model, tmp_path):
    def run(scheme, **more):
        given, inputs = params(scheme, **more), {"model": model}
        if SCHEMES[scheme].activations == "static":
            given |= {"calibration_rows": 4, "calibration_length": 64}
            inputs["calibration"] = write_rows(tmp_path / "rows", "train.jsonl", ROWS)
        ran = run_step("quantise", tmp_path, inputs=inputs, params=given, portable=(1, None))
        section = Quantise(
            scheme=scheme, method="rtn", rows=None, params=tuple(sorted(given.items()))
        )
        return section, ran.folder(), ran.folder("report")

    return run


@pytest.mark.parametrize("embeddings", ["keep", "int8"])
@pytest.mark.parametrize("scheme", NAMES)
def test_the_bytes_that_are_told_before_are_those_that_the_step_writes(
    model, quantised, scheme, embeddings
):
    """CLI-31."""
    section, folder, report = quantised(scheme, embeddings=embeddings)
    stored = sum(one.end - one.begin for one in headers(folder).values())
    assert quantised_bytes(headers(model), section) == stored
    assert json.loads((report / "quantisation.json").read_bytes())["tensor_bytes"] == stored


def test_layers_that_are_kept_are_told_as_they_are(model, quantised):
    section, folder, _ = quantised("w4a16", keep="*.down_proj\nmodel.layers.0.*")
    stored = sum(one.end - one.begin for one in headers(folder).values())
    assert quantised_bytes(headers(model), section) == stored


@pytest.mark.parametrize("embeddings", ["keep", "int8"])
@pytest.mark.parametrize("scheme", NAMES)
def test_the_network_and_its_headers_are_counted_the_same(model, quantised, scheme, embeddings):
    """EVAL-16, EVI-6."""
    _, folder, _ = quantised(scheme, embeddings=embeddings)
    counted = Architecture.of(load(folder).network)
    read = Sizes.of(config(folder), headers(folder))
    for name in (
        *("body", "head", "layers", "query_width", "cache_width"),
        *("element_bytes", "parameter_bytes"),
    ):
        assert getattr(counted, name) == getattr(read, name), name
    assert counted.parameters == 90_688
    weights = shapes(config(folder), headers(folder))
    assert weights == shapes(config(model), headers(model))
