"""`kolm numerics`: the table, and what a model uses of it."""

import json

import pytest

from kolm_build.errors import Exit
from kolm_build.numerics.certified import table
from tests.cli.command import kolm
from tests.cli.test_startup import HEAVY, imported
from tests.support.models import tiny_llama


def test_the_table_is_printed_without_loading_a_framework():
    """CLI-14 for a command that people use while they read."""
    assert not imported("numerics", "list") & HEAVY


def test_a_text_filters_by_name_section_and_reason():
    answer = kolm("numerics", "list", "embedding")
    assert answer.status == 0
    assert "  aten::embedding_dense_backward" in answer.out.splitlines()
    assert "aten::mm" not in answer.out
    assert answer.out.endswith(f" of {len(table())} certified operations\n")


def test_the_table_is_json_for_machines_and_gives_conditions():
    lines = [json.loads(line) for line in kolm("numerics", "list", "--json").out.splitlines()]
    assert [line["operator"] for line in lines] == list(table())
    assert {line["how"] for line in lines} == {
        "exact", "composed", "decomposed", "own", "replaced",
    }  # fmt: skip
    assert all(line["why"] for line in lines)
    (mul,) = [line for line in lines if line["operator"] == "aten::mul.Tensor"]
    assert mul["condition"] == "real"


@pytest.mark.ml
@pytest.mark.filterwarnings("ignore")
def test_a_model_of_certified_operations_passes(tmp_path):
    answer = kolm("numerics", "check", str(tiny_llama(tmp_path / "model")), "--json", "--all")
    uses = [json.loads(line) for line in answer.out.splitlines()]
    assert answer.status == 0
    assert {use["how"] for use in uses} == {"exact", "composed", "decomposed", "replaced"}
    places = {use["place"] for use in uses if use["operator"] == "aten::mm"}
    assert "model.layers.1.mlp.gate_proj (Linear)" in places
    assert "backward of MmBackward0" in places


@pytest.mark.ml
@pytest.mark.filterwarnings("ignore")
def test_an_uncertified_operation_is_shown_with_its_module_and_fails(tmp_path):
    """NUM-90: Mamba convolves."""
    config = {"model_type": "mamba", "vocab_size": 64, "hidden_size": 16, "state_size": 4}
    config |= {"num_hidden_layers": 1, "time_step_rank": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    answer = kolm("numerics", "check", str(tmp_path))
    assert answer.status == Exit.BUILD
    (line,) = [line for line in answer.out.splitlines() if line.startswith("aten::convolution ")]
    assert "uncertified" in line
    assert line.endswith("backbone.layers.0.mixer (MambaMixer)")


def test_a_folder_without_a_model_is_refused(tmp_path):
    answer = kolm("numerics", "check", str(tmp_path))
    assert answer.status == Exit.INPUT
    assert "config.json" in answer.err
