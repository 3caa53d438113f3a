"""A decoder gives the bits of the network that it stands for, and stands for no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from kolm_build.core.numerics import Numerics
from kolm_build.core.request import Circumstances
from kolm_build.numerics import kernels
from kolm_build.numerics.apply import applied
from kolm_build.runtime import answering, opening
from kolm_build.runtime.asking import Prompt
from kolm_build.runtime.decoder import FIXED, Decoder, is_known
from kolm_build.runtime.generate import continue_greedily, joined, read_prompts
from kolm_build.runtime.loading import load
from kolm_build.runtime.prompt_cache import PromptCache
from kolm_build.runtime.room import Room
from kolm_build.runtime.settings import Distribution, GenerationSettings
from tests.runtime.artifacts import write_artifact
from tests.support.models import tiny_llama
from tests.support.quantised import quantised

pytestmark = pytest.mark.skipif(
    not kernels.LIBRARY.is_file(), reason="the portable kernels are not compiled"
)

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SCHEMES = ("w8a16", "w4a16", "w4a16-asym", "w8a8", "w4a8", "fp8", "nvfp4a16", "nvfp4", "mxfp4")


def computing(threads: int = 1):
    return applied(
        Numerics(cls="portable-1"), Circumstances(kernels=str(kernels.LIBRARY), threads=threads)
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("source") / "tiny")


def network_of(*, dtype=torch.float32, **changes):
    """A Llama of random weights, in evaluation mode."""
    given = {
        "vocab_size": 300,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.2,
        "attn_implementation": "sdpa",
    }
    torch.manual_seed(5)
    return LlamaForCausalLM(LlamaConfig(**given | changes)).to(dtype).eval()


def prompt(length: int, seed: int = 0) -> list[int]:
    return [(37 * at + 11 * seed + at * at) % 250 + 3 for at in range(length)]


def check_equal(network, lengths=(1, 17, 70), tokens=3, rows=1):
    """Prompts and what is said after them, bit for bit."""
    decoder = Decoder(network)
    for length in lengths:
        prompts = [prompt(length, seed) for seed in range(rows)]
        one, other = read_prompts(network, prompts), read_prompts(decoder, prompts)
        assert isinstance(other.cache, Room)
        assert torch.equal(one.logits, other.logits)
        logits = one.logits
        for _ in range(tokens):
            chosen = logits.argmax(dim=-1)
            logits = one.read(chosen)
            assert torch.equal(logits, other.read(chosen))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1, "head_dim": 32},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        {"rope_parameters": LLAMA3},
        {"attention_bias": True, "mlp_bias": True},
        {"rms_norm_eps": 1e-6, "num_hidden_layers": 1},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_a_float_network_is_read_bit_for_bit(dtype, changes):
    """GEN-50."""
    network = network_of(dtype=dtype, **changes)
    if changes.get("attention_bias"):
        for name, one in network.named_parameters():
            if name.endswith(".bias"):
                torch.nn.init.normal_(one)
    assert is_known(network)
    with computing():
        check_equal(network)


@pytest.mark.parametrize("embeddings", ["keep", "int8"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantised_network_is_read_bit_for_bit(source, tmp_path, scheme, embeddings):
    """GEN-50."""
    folder = quantised(source, tmp_path / "model", scheme, embeddings=embeddings)
    with computing():
        network = load(folder).network
        assert is_known(network)
        check_equal(network, lengths=(1, 9, 33), tokens=3)


def test_a_quantised_network_in_bfloat16_is_read_bit_for_bit(source, tmp_path):
    """GEN-50: as SmolLM2 is stored."""
    narrow = tiny_llama(tmp_path / "narrow")
    weights = {
        name: one.bfloat16() for name, one in load_file(narrow / "model.safetensors").items()
    }
    save_file(weights, narrow / "model.safetensors")
    config = json.loads((narrow / "config.json").read_text()) | {"dtype": "bfloat16"}
    (narrow / "config.json").write_text(json.dumps(config))
    for scheme in ("w4a16", "w8a16", "w4a8", "nvfp4a16"):
        folder = quantised(narrow, tmp_path / scheme, scheme, embeddings="int8")
        with computing():
            network = load(folder).network
            assert network.model.norm.weight.dtype == torch.bfloat16
            check_equal(network, lengths=(1, 20), tokens=4)


def test_rows_and_threads_change_no_bit():
    """GEN-50, GEN-2."""
    network = network_of(dtype=torch.bfloat16)
    with computing(2):
        check_equal(network, lengths=(1, 40), rows=3)


def test_room_grows_and_so_do_the_rotary_tables():
    """GEN-50: past what either was made for at first."""
    network = network_of(num_hidden_layers=1)
    with computing():
        check_equal(network, lengths=(3, 500), tokens=90)


def test_all_logits_are_there_where_they_are_asked_for():
    """GEN-50."""
    network = network_of()
    ids = torch.tensor([prompt(12)])
    with computing(), torch.inference_mode():
        assert torch.equal(Decoder(network)(ids).logits, network(input_ids=ids).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_read_before_is_read_on_bit_for_bit(dtype):
    """GEN-50, GEN-30."""
    network = network_of(dtype=dtype)
    cache = PromptCache(Decoder(network))
    begin = prompt(30)
    with computing():
        for ids in (begin + prompt(9, 1), begin + prompt(20, 2), begin + prompt(20, 2), begin[:12]):
            one, other = read_prompts(network, [ids]), cache.read(ids)
            assert torch.equal(one.logits, other.logits)
            said = continue_greedily(one, max_new_tokens=4, stop_ids=set())
            assert continue_greedily(other, max_new_tokens=4, stop_ids=set()) == said


def test_prompts_of_several_lengths_are_continued_together():
    """GEN-50, GEN-2: rows of several lengths are left to the network."""
    network = network_of(dtype=torch.bfloat16)
    decoder = Decoder(network)
    prompts = [prompt(length) for length in (3, 19, 40)]
    with computing():
        prefixes = [read_prompts(decoder, [ids]) for ids in prompts]
        together = continue_greedily(joined(prefixes, room=6), max_new_tokens=6, stop_ids=set())
        for row, ids in enumerate(prompts):
            alone = read_prompts(network, [ids])
            assert continue_greedily(alone, max_new_tokens=6, stop_ids=set()) == [together[row]]


def test_outside_portable_1_the_network_itself_is_asked():
    """GEN-50: stock kernels promise nothing about the order of sums."""
    network = network_of()
    prefix = read_prompts(Decoder(network), [prompt(8)])
    assert not isinstance(prefix.cache, Room)
    assert torch.equal(prefix.logits, read_prompts(network, [prompt(8)]).logits)


# --------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("name", ["surprise", "sliding_window", "logit_scale", "layer_types"])
def test_a_setting_that_is_not_written_down_goes_by_the_network(name):
    """GEN-51."""
    network = network_of()
    setattr(network.config, name, None)
    assert not is_known(network)


@pytest.mark.parametrize("name", FIXED)
def test_a_setting_of_another_value_goes_by_the_network(name):
    """GEN-51."""
    network = network_of()
    vars(network.config)[name] = "other"
    assert not is_known(network)


@pytest.mark.parametrize(
    "rotary",
    [
        None,
        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        {"rope_theta": 1e4},
    ],
)
def test_rotary_positions_of_another_kind_go_by_the_network(rotary):
    """GEN-51."""
    network = network_of()
    vars(network.config)["rope_parameters"] = rotary
    assert not is_known(network)


class _OtherNorm(torch.nn.Module):
    weight = torch.ones(96)


class _OtherLinear(torch.nn.Linear):
    pass


@pytest.mark.parametrize(
    ("owner", "name", "part"),
    [
        ("model", "norm", _OtherNorm()),
        ("model.layers.1", "input_layernorm", _OtherNorm()),
        ("model.layers.1.self_attn", "q_proj", _OtherLinear(96, 96)),
        ("model.layers.0.mlp", "act_fn", torch.nn.ReLU()),
        ("", "lm_head", _OtherLinear(96, 300)),
    ],
)
def test_a_part_of_another_class_goes_by_the_network(owner, name, part):
    """GEN-51."""
    network = network_of()
    setattr(network.get_submodule(owner), name, part)
    assert not is_known(network)


def test_a_network_in_training_goes_by_itself():
    """GEN-51."""
    assert not is_known(network_of().train())


# --------------------------------------------------------------------------------------- the door

SETTINGS = GenerationSettings(max_new_tokens=9, distribution=Distribution(), seed=5)
PROMPTS = [Prompt(text=text) for text in ("a dry cough", "low mood", "low mood again", "hives")]


@pytest.fixture(scope="module")
def artifact(source, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("artifact")
    folder = quantised(source, root / "w4a16", "w4a16", embeddings="int8")
    return write_artifact(root / "tiny.kolm", folder)


def test_answers_through_the_door_are_those_of_the_network(artifact):
    """GEN-50: alone, together, streamed, and on any number of threads."""
    plain = opening.opened(artifact)
    answers = plain.answers(PROMPTS, SETTINGS)
    for threads in (1, 2):
        swift = answering.opened(artifact, threads=threads)
        assert isinstance(swift.model.network, Decoder)
        assert swift.answers(PROMPTS, SETTINGS) == answers
        assert swift.generate(PROMPTS[0].text, settings=SETTINGS) == answers[0]
        assert "".join(swift.stream(PROMPTS[1].text, settings=SETTINGS)) == answers[1].text


def test_a_model_that_is_not_known_is_opened_all_the_same(source, tmp_path):
    """GEN-51: a sentence of its configuration that nobody here has read."""
    folder = tiny_llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"surprise": 1}
    (folder / "config.json").write_text(json.dumps(config))
    model, plain = answering.opened(folder), opening.opened(source)
    assert not isinstance(model.model.network, Decoder)
    assert model.generate("low mood", settings=SETTINGS) == plain.generate(
        "low mood", settings=SETTINGS
    )


def test_a_native_artifact_is_read_by_its_network(source, tmp_path):
    """GEN-50."""
    file = write_artifact(tmp_path / "native.kolm", source, numerics="native-1")
    assert not isinstance(answering.opened(file).model.network, Decoder)
