"""A decoder gives the bits of the network that it stands for, and stands for no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kolm_build.core.numerics import Numerics
from kolm_build.core.request import Circumstances
from kolm_build.errors import InvalidRecordError
from kolm_build.numerics import kernels
from kolm_build.numerics.apply import applied
from kolm_build.runtime import answering, modules
from kolm_build.runtime.asking import Prompt
from kolm_build.runtime.compiled import CompiledDecoder
from kolm_build.runtime.decoder import Decoder
from kolm_build.runtime.decoder_config import FIXED, read
from kolm_build.runtime.decoder_loading import decoder_of, decoding_speaker
from kolm_build.runtime.distribution import Distribution
from kolm_build.runtime.files import find_model
from kolm_build.runtime.generate import continue_greedily, read_prompts, reads
from kolm_build.runtime.loading import load
from kolm_build.runtime.prompt_cache import PromptCache
from kolm_build.runtime.room import RaggedRoom, Room, joined_rooms
from kolm_build.runtime.settings import GenerationSettings
from kolm_build.runtime.weights import map_weights
from tests.runtime.artifacts import write_artifact
from tests.runtime.networks import KINDS, LLAMA3, SIZES, network_of, prompt, settings_of
from tests.support.models import ROOT, tiny_llama
from tests.support.quantised import quantised

pytestmark = pytest.mark.skipif(
    not kernels.LIBRARY.is_file(), reason="the portable kernels are not compiled"
)

SCHEMES = ("w8a16", "w4a16", "w4a16-asym", "w8a8", "w4a8", "fp8", "nvfp4a16", "nvfp4", "mxfp4")


def computing(threads: int = 1):
    return applied(
        Numerics(cls="portable-1"), Circumstances(kernels=str(kernels.LIBRARY), threads=threads)
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("source") / "tiny")


def decoder(network):
    """The decoder of what the network's files would hold."""
    tensors = dict(network.state_dict())
    if network.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return decoder_of(settings_of(network), tensors)


def stored(folder):
    """The network at `folder`, and its decoder."""
    settings = json.loads((folder / "config.json").read_text())
    return load(folder).network, decoder_of(
        settings, map_weights(folder / "model.safetensors").tensors
    )


def check_equal(network, other, lengths=(1, 17, 70), tokens=3, rows=1):
    """Prompts and what is said after them, bit for bit."""
    for length in lengths:
        prompts = [prompt(length, seed) for seed in range(rows)]
        one, two = read_prompts(network, prompts), read_prompts(other, prompts)
        assert isinstance(two.cache, Room)
        assert torch.equal(one.logits, two.logits)
        logits = one.logits
        for _ in range(tokens):
            chosen = logits.argmax(dim=-1)
            logits = one.read(chosen)
            assert torch.equal(logits, two.read(chosen))


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
        {"kind": "mistral", "sliding_window": None},
        {"kind": "mistral", "sliding_window": 2048, "head_dim": 32},
        {"kind": "qwen2"},
        {"kind": "qwen2", "tie_word_embeddings": True, "rope_parameters": LLAMA3},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_a_float_network_is_read_bit_for_bit(dtype, changes):
    """GEN-50, GEN-62."""
    network = network_of(dtype=dtype, **changes)
    with computing():
        check_equal(network, decoder(network))


@pytest.mark.parametrize("embeddings", ["keep", "int8"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantised_network_is_read_bit_for_bit(source, tmp_path, scheme, embeddings):
    """GEN-50."""
    folder = quantised(source, tmp_path / "model", scheme, embeddings=embeddings)
    with computing():
        check_equal(*stored(folder), lengths=(1, 9, 33), tokens=3)


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
            network, other = stored(folder)
            assert other.dtype == network.model.norm.weight.dtype == torch.bfloat16
            check_equal(network, other, lengths=(1, 20), tokens=4)


def test_rows_and_threads_change_no_bit():
    """GEN-50, GEN-2."""
    network = network_of(dtype=torch.bfloat16)
    with computing(2):
        check_equal(network, decoder(network), lengths=(1, 40), rows=3)


def test_room_grows_and_so_do_the_rotary_tables():
    """GEN-50: past what either was made for at first."""
    network = network_of(num_hidden_layers=1)
    with computing():
        check_equal(network, decoder(network), lengths=(3, 500), tokens=90)


def test_all_logits_are_there_where_they_are_asked_for():
    """GEN-50."""
    network = network_of()
    ids = torch.tensor([prompt(12)])
    with computing(), torch.inference_mode():
        assert torch.equal(decoder(network)(ids).logits, network(input_ids=ids).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_read_before_is_read_on_bit_for_bit(dtype):
    """GEN-50, GEN-30."""
    network = network_of(dtype=dtype)
    cache = PromptCache(reads(decoder(network)), Room.keep)
    begin = prompt(30)
    with computing():
        for ids in (begin + prompt(9, 1), begin + prompt(20, 2), begin + prompt(20, 2), begin[:12]):
            one, other = read_prompts(network, [ids]), cache.read(ids)
            assert torch.equal(one.logits, other.logits)
            said = continue_greedily(one, max_new_tokens=4, stop_ids=set())
            assert continue_greedily(other, max_new_tokens=4, stop_ids=set()) == said


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_prompts_of_several_lengths_are_continued_together(kind):
    """GEN-63, GEN-2: each as it is alone, also by the network itself."""
    network = network_of(kind=kind, dtype=torch.bfloat16)
    other = decoder(network)
    prompts = [[prompt(3)], [prompt(19), prompt(19, 1)], [prompt(40)]]
    with computing():
        prefixes = [read_prompts(other, ids) for ids in prompts]
        before = [prefix.cache.everything().clone() for prefix in prefixes]
        together = joined_rooms(prefixes, room=6)
        assert isinstance(together.cache, RaggedRoom)
        said = continue_greedily(together, max_new_tokens=6, stop_ids=set())
        for row, ids in enumerate(one for group in prompts for one in group):
            alone = read_prompts(network, [ids])
            assert continue_greedily(alone, max_new_tokens=6, stop_ids=set()) == [said[row]]
        for prefix, kept in zip(prefixes, before, strict=True):
            assert torch.equal(prefix.cache.everything(), kept)


def test_every_logit_of_rows_of_several_lengths_is_that_of_the_row_alone():
    """GEN-63."""
    network = network_of(dtype=torch.bfloat16)
    other = decoder(network)
    prompts = [prompt(length) for length in (70, 5, 33)]
    with computing():
        together = joined_rooms([read_prompts(other, [ids]) for ids in prompts], room=4)
        alone = [read_prompts(network, [ids]) for ids in prompts]
        chosen = torch.tensor([5, 6, 7])
        for _ in range(4):
            logits = together.read(chosen)
            for row, prefix in enumerate(alone):
                assert torch.equal(logits[row], prefix.read(chosen[row : row + 1])[0])
            chosen = logits.argmax(dim=-1)


def test_one_prompt_is_joined_as_it_is():
    other = decoder(network_of(num_hidden_layers=1))
    with computing():
        prefix = read_prompts(other, [prompt(5)])
        assert joined_rooms([prefix], room=3) is prefix


# --------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_configuration_leaves_out_is_what_transformers_takes(kind):
    """GEN-61: a setting that has a default here has the architecture's."""
    config, _ = KINDS[kind]
    written = SIZES | {"model_type": kind, "hidden_act": "silu", "rope_theta": 1e4}
    if kind == "mistral":
        written["sliding_window"] = None
    whole = json.loads(config.from_dict(written).to_json_string(use_diff=False))
    assert read(written) == read(whole)


@pytest.mark.parametrize("rotary", [{"rope_type": "linear", "factor": 2.0}, LLAMA3])
def test_rotary_positions_are_read_as_older_releases_wrote_them(rotary):
    """GEN-61: `rope_theta` beside `rope_scaling`, and that in `rope_parameters`."""
    old = {name: one for name, one in rotary.items() if name != "rope_theta"}
    written = SIZES | {"model_type": "llama", "hidden_act": "silu", "rope_theta": 5e5}
    new = SIZES | {"model_type": "llama", "hidden_act": "silu"}
    assert read(written | {"rope_scaling": old}) == read(
        new | {"rope_parameters": old | {"rope_theta": 5e5}}
    )
    assert read(written | {"rope_scaling": None}).rotary.kind == "default"


def refused(settings):
    with pytest.raises(InvalidRecordError):
        read(settings)


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": None},
        {"sliding_window": None},
        {"logit_scale": 1.0},
        {"layer_types": None},
        {"partial_rotary_factor": 0.5},
        {"per_layer_config": {}},
        {"hidden_act": "gelu"},
        {"model_type": "gemma"},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": None},
        {"head_dim": 31},
        {"vocab_size": True},
        {"hidden_size": 0},
        {"attention_bias": "no"},
        {"rms_norm_eps": "small"},
        {"rope_theta": 1e4},
        {"rope_parameters": None},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        {"rope_parameters": {"rope_theta": 1e4}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": -1}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": float("inf")}},
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            }
        },
    ],
    ids=str,
)
def test_a_setting_that_is_not_written_down_is_refused(change):
    """GEN-51: by its name, or its value."""
    good = settings_of(network_of())
    read(good)
    refused(good | change)


@pytest.mark.parametrize("name", FIXED)
def test_a_setting_that_must_have_a_value_is_refused_with_another(name):
    """GEN-51."""
    refused(settings_of(network_of()) | {name: True})


@pytest.mark.parametrize(
    "change",
    [
        {"sliding_window": 2047},
        {"layer_types": ["full_attention"] * 2},
        {"attention_bias": False},
    ],
    ids=str,
)
def test_a_mistral_whose_window_hides_keys_is_refused(change):
    """GEN-62."""
    good = settings_of(network_of(kind="mistral", sliding_window=None))
    read(good | {"sliding_window": 2048})
    refused(good | change)
    del good["sliding_window"]
    refused(good)  # the architecture's own default is a window of 4096


@pytest.mark.parametrize(
    "change",
    [
        {"use_sliding_window": True},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"layer_types": ["full_attention"]},
    ],
    ids=str,
)
def test_a_qwen2_with_layers_that_hide_keys_is_refused(change):
    """GEN-62."""
    good = settings_of(network_of(kind="qwen2"))
    read(good | {"sliding_window": 128, "max_window_layers": 1})
    refused(good | change)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.norm.weight", None),
        ("model.norm.weight", torch.ones(95)),
        ("model.norm.weight", torch.ones(96, dtype=torch.float16)),
        ("model.layers.1.mlp.up_proj.weight", torch.ones(96, 160)),
        ("model.layers.1.mlp.up_proj.bias", torch.ones(160)),
        ("surprise", torch.ones(1)),
    ],
)
def test_a_tensor_that_is_not_the_networks_is_refused(name, tensor):
    """GEN-51: missing, of another shape or dtype, or one that nobody asks for."""
    network = network_of()
    tensors = dict(network.state_dict()) | {name: tensor}
    if tensor is None:
        del tensors[name]
    with pytest.raises(InvalidRecordError):
        decoder_of(settings_of(network), tensors)


def test_a_tied_head_that_is_in_the_file_too_is_refused():
    """GEN-51: which of the two is meant, the network's loader says."""
    network = network_of(tie_word_embeddings=True)
    with pytest.raises(InvalidRecordError):
        decoder_of(settings_of(network), network.state_dict())


def test_a_quantised_layer_with_numbers_that_cannot_be_is_refused(source, tmp_path):
    """GEN-45, GEN-51."""
    folder = quantised(source, tmp_path / "model", "w4a16")
    tensors = load_file(folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    decoder_of(settings, tensors)
    tensors["model.layers.0.mlp.up_proj.weight_scale"].fill_(float("nan"))
    with pytest.raises(InvalidRecordError):
        decoder_of(settings, tensors)


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
    plain = modules.opened(artifact)
    answers = plain.answers(PROMPTS, SETTINGS)
    for threads in (1, 2):
        swift = answering.by_decoder(artifact, threads=threads)
        assert isinstance(swift.model.network, Decoder)
        assert swift.answers(PROMPTS, SETTINGS) == answers
        assert swift.generate(PROMPTS[0].text, settings=SETTINGS) == answers[0]
        assert "".join(swift.stream(PROMPTS[1].text, settings=SETTINGS)) == answers[1].text


def test_a_model_that_is_not_known_is_opened_all_the_same(source, tmp_path):
    """GEN-51: a sentence of its configuration that nobody here has read."""
    folder = tiny_llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"surprise": 1}
    (folder / "config.json").write_text(json.dumps(config))
    model, plain = answering.opened(folder), modules.opened(source)
    assert not isinstance(model.model.network, Decoder | CompiledDecoder)
    assert model.generate("low mood", settings=SETTINGS) == plain.generate(
        "low mood", settings=SETTINGS
    )


def test_a_model_with_an_adapter_beside_its_weights_is_not_read_without_it(tmp_path):
    """GEN-51."""
    folder = tiny_llama(tmp_path / "model")
    assert decoding_speaker(find_model(folder)) is not None
    (folder / "adapter_config.json").write_text("{}")
    assert decoding_speaker(find_model(folder)) is None


def test_a_native_artifact_is_read_by_its_network(source, tmp_path):
    """GEN-50."""
    file = write_artifact(tmp_path / "native.kolm", source, numerics="native-1")
    assert not isinstance(answering.opened(file).model.network, Decoder | CompiledDecoder)


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_the_kin_of_llama_answers_as_by_its_modules(source, tmp_path, kind):
    """GEN-62."""
    network = network_of(
        kind=kind, vocab_size=512, **({"sliding_window": None} if kind == "mistral" else {})
    )
    folder = tiny_llama(tmp_path / kind)
    network.save_pretrained(folder)
    swift = answering.by_decoder(folder)
    assert isinstance(swift.model.network, Decoder)
    assert swift.answers(PROMPTS, SETTINGS) == modules.opened(folder).answers(PROMPTS, SETTINGS)


# ----------------------------------------------------------------------------------- its imports

ASK = """
import sys
from kolm_build.numerics import decoder_library
from kolm_build.surfaces.cli import main
decoder_library.is_compiled = lambda: False
status = main(["run", sys.argv[1], "low mood", "--max-new-tokens", "3", "--threads", "1"])
names = ("transformers", "peft", "safetensors", "llguidance", "torch._dynamo", "torch._inductor",
         "sympy", "torch.distributed.tensor", "cryptography", "pyarrow")
print(status, "torch" in sys.modules, *[name for name in names if name in sys.modules])
"""


def test_a_prompt_is_answered_without_transformers_and_torchs_compiler(artifact):
    """GEN-60: what an answer has imported that torch's operators compute."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(artifact)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "0 True"
