"""What calibration reads, and what layers are fed by it."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from kolm_build.errors import InvalidDataError, InvalidRecordError, NotFiniteError
from kolm_build.runtime.loading import load
from kolm_build.steps.quantisation.calibration import decoder_layers, sequences_of, walk
from tests.quantisation.calibrating import (
    first_block,
    linear_layers,
    portable,
    tiny_network,
    token_rows,
)
from tests.steps_ml.calling import write_lines, write_rows
from tests.support.models import tiny_llama

PAIRS = [(f"Which ward is number {at}?", "bone") for at in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(tiny_llama(tmp_path_factory.mktemp("model") / "model", window=64))


def text_row(text):
    row = {"group": "", "id": "sha256:" + "0" * 64, "messages": [], "text": text}
    return json.dumps(row, sort_keys=True, separators=(",", ":")).encode()


class TestSequences:
    """QUANT-70, QUANT-71: the first rows, in order, cut at a length."""

    def test_a_conversation_is_read_as_training_reads_it(self, model, tmp_path):
        folder = write_rows(tmp_path / "train", "train.jsonl", PAIRS)
        found = sequences_of(model, folder, rows=6, length=1000)
        prompt = model.chat.prompt_ids([{"role": "user", "content": PAIRS[2][0]}])
        assert found[2] == (*prompt, *model.chat.answer_ids("bone"))

    def test_only_the_first_rows_are_read_and_only_their_beginnings(self, model, tmp_path):
        folder = write_rows(tmp_path / "train", "train.jsonl", PAIRS)
        whole = sequences_of(model, folder, rows=6, length=1000)
        assert sequences_of(model, folder, rows=5, length=30) == tuple(
            one[:30] for one in whole[:5]
        )
        assert sequences_of(model, folder, rows=1000, length=1000) == whole

    def test_a_row_is_cut_at_the_model_s_window(self, model, tmp_path):
        folder = write_rows(tmp_path / "train", "train.jsonl", [("word " * 100, "bone")] * 3)
        assert {len(one) for one in sequences_of(model, folder, rows=3, length=1000)} == {64}

    def test_texts_are_read_too(self, model, tmp_path):
        lines = [text_row("The heart has four chambers. " * 3)] * 3
        folder = write_lines(tmp_path / "train", "train.jsonl", lines)
        found = sequences_of(model, folder, rows=3, length=1000)
        assert model.chat.tokenizer.decode(found[0]).startswith("The heart has")

    def test_an_empty_set_is_refused(self, model, tmp_path):
        folder = write_lines(tmp_path / "train", "train.jsonl", [])
        with pytest.raises(InvalidDataError, match="an empty calibration set"):
            sequences_of(model, folder, rows=6, length=1000)

    def test_too_few_tokens_are_refused(self, model, tmp_path):
        folder = write_rows(tmp_path / "train", "train.jsonl", PAIRS)
        with pytest.raises(InvalidDataError, match="too few tokens") as refusal:
            sequences_of(model, folder, rows=1, length=20)
        assert refusal.value.actual == "20 tokens in 1 rows"

    @pytest.mark.parametrize("line", [b"{", b"[]", b'{"id":"x"}'])
    def test_a_line_that_is_no_row_is_refused_by_number(self, model, tmp_path, line):
        folder = write_lines(tmp_path / "train", "train.jsonl", [line])
        with pytest.raises(InvalidRecordError) as refusal:
            sequences_of(model, folder, rows=1, length=20)
        assert "row 1" in str(refusal.value)


def test_the_decoder_layers_are_found_by_their_number():
    name, layers = decoder_layers(tiny_network())
    assert name == "model.layers"
    assert len(layers) == 2


def test_layers_that_read_one_tensor_are_one_stage_in_the_order_of_calls():
    stages = first_block(tiny_network()).stages
    layer = "model.layers.0"
    assert [stage.layers for stage in stages] == [
        tuple(f"{layer}.self_attn.{letter}_proj" for letter in "qkv"),
        (f"{layer}.self_attn.o_proj",),
        (f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj"),
        (f"{layer}.mlp.down_proj",),
    ]
    assert [stage.norm for stage in stages] == [
        f"{layer}.input_layernorm",
        "",
        f"{layer}.post_attention_layernorm",
        "",
    ]


class Either(torch.nn.Module):
    """A layer for rows of even length, and another one for the rest."""

    def __init__(self):
        super().__init__()
        self.even = torch.nn.Linear(64, 64)
        self.odd = torch.nn.Linear(64, 64)

    def forward(self, x):
        return self.odd(x) if x.shape[1] % 2 else self.even(x)


def test_a_layer_that_only_a_later_row_reaches_is_fed_by_it():
    """QUANT-72: such as an expert of a mixture."""
    network = copy.deepcopy(tiny_network())
    network.model.layers[0].mlp = Either()
    rows = (*token_rows(rows=2), *token_rows(rows=1, length=41))
    block = first_block(network, rows)
    even, odd = (
        next(stage for stage in block.stages if stage.layers == (f"model.layers.0.mlp.{name}",))
        for name in ("even", "odd")
    )
    assert block.statistics(even).tokens == 80
    assert block.statistics(odd).tokens == 41
    assert not [stage for stage in first_block(network, rows[:2]).stages if stage == odd]


def seen_by_hooks(network, rows):
    """What every linear layer reads in an ordinary run of the network, float64."""
    inputs: dict[str, list[torch.Tensor]] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _module, args, name=name: inputs.setdefault(name, []).append(args[0][0].double())
        )
        for name, module in linear_layers(network).items()
    ]
    with torch.no_grad():
        for row in rows:
            network(input_ids=torch.tensor([row]), use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(found) for name, found in inputs.items()}


def test_a_network_that_nobody_changes_is_seen_as_it_runs():
    network, rows = tiny_network(), token_rows(rows=3)
    want = seen_by_hooks(network, rows)
    for block in walk(network, rows):
        for stage in block.stages:
            seen = block.statistics(stage)
            for name in stage.layers:
                inputs = want[name]
                np.testing.assert_allclose(
                    seen.gram, (inputs.T @ inputs).numpy(), rtol=1e-3, atol=1e-3
                )
                torch.testing.assert_close(
                    seen.most.double(), inputs.abs().amax(0), rtol=1e-4, atol=1e-5
                )
                torch.testing.assert_close(
                    seen.mean.double(), inputs.abs().mean(0), rtol=1e-4, atol=1e-5
                )
                assert seen.tokens == len(inputs) == 120


def test_a_block_is_fed_by_what_the_blocks_before_it_have_become():
    """QUANT-72: the second layer reads nothing of what the first one wrote before its change."""
    network, rows = tiny_network(), token_rows(rows=3)
    blocks = walk(network, rows)
    first = next(blocks)
    for name in ("model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"):
        first.linear(name).weight.data = torch.zeros_like(first.linear(name).weight)
    second = next(blocks)
    embedded = network.get_input_embeddings()(torch.tensor([rows[0]]))
    assert torch.equal(second.input(), embedded.detach())


def test_a_stage_sees_the_stages_before_it_in_its_block_as_they_are_now():
    """QUANT-72."""
    block = first_block(tiny_network())
    attention, output = block.stages[0], block.stages[1]
    before = block.statistics(output).most
    value = block.linear(attention.layers[2])
    value.weight.data = value.weight.data * 2
    torch.testing.assert_close(block.statistics(output).most, before * 2)


def test_inputs_that_are_not_finite_are_refused_by_layer():
    """QUANT-73."""
    block = first_block(tiny_network())
    norm = block.part(block.stages[0].norm)
    norm.weight.data = torch.full_like(norm.weight, torch.inf)
    with pytest.raises(NotFiniteError, match="inputs are not finite") as refusal:
        block.statistics(block.stages[0])
    assert refusal.value.where == "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_of_a_short_format_is_calibrated_in_float32(tmp_path, dtype):
    network = load(tiny_llama(tmp_path / "model"), dtype=dtype).network
    with portable():
        block = first_block(network)
        assert block.input().dtype == torch.float32
        assert block.output().dtype == torch.float32
    assert {parameter.dtype for parameter in network.parameters()} == {dtype}


def test_inputs_divided_by_a_scale_have_the_statistics_that_follow():
    block = first_block(tiny_network())
    stage = block.stages[0]
    seen = block.statistics(stage)
    scale = torch.linspace(0.5, 2.0, len(seen.mean))
    norm = block.part(stage.norm)
    norm.weight.data = norm.weight.data / scale
    again, want = block.statistics(stage), seen.scaled(scale)
    np.testing.assert_allclose(again.gram, want.gram, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again.mean, want.mean)
    torch.testing.assert_close(again.most, want.most)
