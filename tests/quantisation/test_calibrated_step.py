"""The step `quantise` with methods that calibrate: what it writes, says, and refuses."""

from __future__ import annotations

import json

import pytest
import torch

from kolm_build.numerics import portable
from kolm_build.runtime.loading import load
from kolm_build.runtime.weights import map_weights
from tests.quantisation.calibrating import linear_layers
from tests.steps_ml.calling import files_of, run_step, write_rows
from tests.support.models import tiny_llama

pytestmark = pytest.mark.ml

PAIRS = [(f"Which ward takes patient number {at}?", "bone") for at in range(12)]
CALIBRATION = {"calibration_rows": 10, "calibration_length": 64}
CASES = {
    "awq": {"scheme": "w4a16-asym", "method": "awq", "grid": 4},
    "gptq": {"scheme": "w4a16", "method": "gptq"},
    "gptq-nvfp4": {"scheme": "nvfp4", "method": "gptq", "act_order": "none", "damping": "0.1"},
    "rtn": {"scheme": "w8a8-static", "method": "rtn"},
    "smoothquant": {"scheme": "w8a8", "method": "smoothquant", "strength": "0.8"},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    return {
        "model": tiny_llama(root / "model"),
        "calibration": write_rows(root / "train", "train.jsonl", PAIRS),
    }


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def runs(request, inputs, tmp_path_factory):
    """The same step on one thread of the best instruction set, and on two of the least."""
    root = tmp_path_factory.mktemp("runs")
    params = CASES[request.param] | CALIBRATION
    return request.param, [
        run_step("quantise", root, inputs=inputs, params=params, portable=machine)
        for machine in ((1, None), (2, portable.isas()[-1]))
    ]


def test_threads_and_instruction_sets_change_no_byte(runs):
    """QUANT-50."""
    _, (first, second) = runs
    assert files_of(first.folder()) == files_of(second.folder())
    assert files_of(first.folder("report")) == files_of(second.folder("report"))


def test_progress_is_told_by_layer_and_the_tokens_are_named(runs):
    _, (ran, _) = runs
    layers = [one for one in ran.events if one.get("unit") == "layer"]
    assert [(one["done"], one["total"]) for one in layers] == [(1, 2), (2, 2)]
    assert any("tokens of 10 rows" in line for line in ran.logged())


def test_the_report_has_the_errors_of_every_layer(runs, inputs):
    """QUANT-61: a method that chooses is nowhere far worse than nearest, GPTQ never."""
    name, (ran, _) = runs
    value = json.loads((ran.folder("report") / "quantisation.json").read_text())
    assert len(value["layers"]) == len(linear_layers(load(inputs["model"]).network))
    for layer in value["layers"]:
        chosen, plain = float(layer["output_error"]), float(layer["output_error_of_nearest"])
        assert 0 < chosen < 0.5
        assert float(layer["relative_error"]) < 0.5
        if name.startswith("gptq"):
            assert chosen <= plain
        if name == "rtn":
            assert chosen == plain


def test_only_what_a_scale_was_folded_into_changes_beside_the_layers(runs, inputs):
    """QUANT-80: norms take scales with awq and smoothquant, and with no other method."""
    name, (ran, _) = runs
    before = map_weights(inputs["model"] / "model.safetensors").tensors
    after = map_weights(ran.folder() / "model.safetensors").tensors
    moved = {one for one in before if one in after and not torch.equal(before[one], after[one])}
    weights = {f"{layer}.weight" for layer in linear_layers(load(inputs["model"]).network)}
    norms = {one for one in before if "layernorm" in one}
    assert moved - weights <= norms
    assert bool(moved - weights) == (name in ("awq", "smoothquant"))


def test_static_activations_are_scaled_by_the_largest_input(runs):
    """QUANT-26, QUANT-78."""
    name, (ran, _) = runs
    tensors = map_weights(ran.folder() / "model.safetensors").tensors
    named = ("input_scale", "input_global_scale")
    scales = {one: float(tensors[one]) for one in tensors if one.endswith(named)}
    assert bool(scales) == (name in ("rtn", "gptq-nvfp4"))
    assert all(one > 0 for one in scales.values())
    attention = [one for one in scales if ".0.self_attn." in one and "o_proj" not in one]
    assert len({scales[one] for one in attention}) == (1 if scales else 0)


@pytest.mark.parametrize("rows", [[], PAIRS[:1]])
def test_a_calibration_set_that_is_empty_or_too_small_is_refused(inputs, tmp_path, rows):
    """QUANT-71: nothing is written."""
    few = write_rows(tmp_path / "train", "train.jsonl", rows)
    ran = run_step(
        "quantise",
        tmp_path / "runs",
        inputs=inputs | {"calibration": few},
        params={"scheme": "w4a16", "method": "gptq", "calibration_length": 32},
        portable=(1, None),
    )
    assert ran.refusal()["code"] == "input.data"
    assert files_of(ran.outputs["out"]) == {}
