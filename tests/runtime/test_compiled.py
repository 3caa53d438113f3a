"""The compiled decoder gives the bits of the one on torch's operators, without torch."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kolm_build.core.numerics import Numerics
from kolm_build.core.request import Circumstances
from kolm_build.errors import (
    BuildError,
    FloatingPointEnvironmentError,
    InvalidRecordError,
    KernelsMissingError,
    MachineError,
)
from kolm_build.numerics import decoder_library, kernels
from kolm_build.numerics.apply import applied
from kolm_build.numerics.decoder_library import Library, NetworkReader
from kolm_build.runtime import answering
from kolm_build.runtime.asking import Prompt
from kolm_build.runtime.compiled import joined_prefixes
from kolm_build.runtime.compiled_loading import (
    compiled_decoder,
    compiled_speaker,
    frequencies,
)
from kolm_build.runtime.decoder_config import Rotary
from kolm_build.runtime.decoder_loading import decoder_of
from kolm_build.runtime.distribution import Distribution
from kolm_build.runtime.files import find_model
from kolm_build.runtime.generate import read_prompts
from kolm_build.runtime.mapped import map_file, mapped_tensors
from kolm_build.runtime.prompt_cache import PromptCache
from kolm_build.runtime.settings import GenerationSettings, JsonSchema, Labels, Regex
from kolm_build.runtime.weights import map_weights
from tests.runtime.artifacts import write_artifact
from tests.runtime.networks import LLAMA3, network_of, prompt, settings_of
from tests.support.models import ROOT, tiny_llama
from tests.support.quantised import quantised

pytestmark = pytest.mark.skipif(
    not (kernels.LIBRARY.is_file() and decoder_library.is_compiled()),
    reason="the portable kernels are not compiled",
)

SCHEMES = ("w8a16", "w4a16", "w4a16-asym", "w8a8", "w8a8-static", "w4a8", "fp8", "nvfp4a16")
ISAS = Library().isas() if decoder_library.is_compiled() else ()


def computing():
    return applied(
        Numerics(cls="portable-1"), Circumstances(kernels=str(kernels.LIBRARY), threads=1)
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """The tiny model in bfloat16."""
    folder = tiny_llama(tmp_path_factory.mktemp("narrow") / "tiny")
    weights = load_file(folder / "model.safetensors")
    save_file({name: one.bfloat16() for name, one in weights.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def saved(folder, network):
    """`folder`, made: config.json and the weights of `network`."""
    tensors = dict(network.state_dict())
    if network.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings_of(network)))
    return folder


def settings(folder):
    return json.loads((folder / "config.json").read_text())


def compiled(folder, **options):
    tensors = mapped_tensors(map_file(folder / "model.safetensors"))
    return compiled_decoder(settings(folder), tensors, **options)


def plain(folder):
    return decoder_of(settings(folder), map_weights(folder / "model.safetensors").tensors)


def same(one, other):
    """Whether torch's numbers and NumPy's have the same bits."""
    return one.numpy().tobytes() == other.tobytes()


def check_equal(folder, lengths=(1, 17, 70), tokens=3, **options):
    """Prompts and what is said after them, bit for bit."""
    with computing():
        one, other = plain(folder), compiled(folder, **options)
    for length in lengths:
        with computing():
            before, after = read_prompts(one, [prompt(length)]), other.read_on(None, prompt(length))
            assert same(before.logits, after.logits)
            logits = before.logits
            for _ in range(tokens):
                chosen = logits.argmax(dim=-1)
                logits = before.read(chosen)
                assert same(logits, after.read(chosen.tolist()))


# ------------------------------------------------------------------------------------------- bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 1, "head_dim": 32},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        {"rope_parameters": LLAMA3},
        {"attention_bias": True, "mlp_bias": True},
        {"kind": "mistral", "sliding_window": None},
        {"kind": "qwen2", "tie_word_embeddings": True},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_a_float_network_is_read_bit_for_bit(tmp_path, dtype, changes):
    """GEN-71."""
    check_equal(saved(tmp_path / "model", network_of(dtype=dtype, **changes)))


@pytest.mark.parametrize("embeddings", ["keep", "int8"])
@pytest.mark.parametrize("scheme", [*SCHEMES, "mxfp4"])
@pytest.mark.parametrize("kind", ["source", "narrow"])
def test_a_quantised_network_is_read_bit_for_bit(request, tmp_path, kind, scheme, embeddings):
    """GEN-71: in float32, and in bfloat16 as SmolLM2 is stored."""
    made_of = request.getfixturevalue(kind)
    check_equal(quantised(made_of, tmp_path / "model", scheme, embeddings=embeddings), (1, 9, 33))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scheme", ["w4a16", "w8a8", "nvfp4a16"])
def test_threads_and_instruction_sets_change_no_bit(narrow, tmp_path, scheme, isa, threads):
    """GEN-71, GEN-2."""
    folder = quantised(narrow, tmp_path / "model", scheme, embeddings="int8")
    check_equal(folder, (1, 40), tokens=2, isa=isa, threads=threads)


def test_long_prompts_are_read_in_parts_and_room_grows(tmp_path):
    """GEN-71: past what room, tables and a part hold."""
    folder = saved(tmp_path / "model", network_of(num_hidden_layers=1, dtype=torch.bfloat16))
    check_equal(folder, (256, 257, 700), tokens=90, threads=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_read_before_is_read_on_bit_for_bit(tmp_path, dtype):
    """GEN-71, GEN-30."""
    folder = saved(tmp_path / "model", network_of(dtype=dtype))
    one, other = plain(folder), compiled(folder)
    cache, begin = PromptCache(other.read_on, other.keep), prompt(30)
    for ids in (begin + prompt(9, 1), begin + prompt(20, 2), begin + prompt(20, 2), begin[:12]):
        with computing():
            before, after = read_prompts(one, [ids]), cache.read(ids)
            assert same(before.logits, after.logits)
            assert same(before.read(torch.tensor([7])), after.read([7]))


def test_rows_of_several_lengths_are_what_they_are_alone(tmp_path):
    """GEN-71, GEN-63."""
    folder = saved(tmp_path / "model", network_of(dtype=torch.bfloat16))
    one, other = plain(folder), compiled(folder, threads=2)
    prompts, chosen = [prompt(length) for length in (70, 5, 33)], [5, 6, 7]
    together = joined_prefixes([other.read_on(None, ids) for ids in prompts], room=4)
    with computing():
        alone = [read_prompts(one, [ids]) for ids in prompts]
        for _ in range(4):
            logits = together.read(chosen)
            for row, prefix in enumerate(alone):
                assert same(prefix.read(torch.tensor(chosen[row : row + 1]))[0], logits[row])
            chosen = logits.argmax(axis=-1).tolist()


def test_threads_of_the_caller_read_one_after_the_other(tmp_path):
    """GEN-71: calls at the same time, of one network and of another, change no bit."""
    folder = saved(tmp_path / "model", network_of())
    readers = [compiled(folder, threads=2), compiled(folder, threads=2)]
    wanted = [readers[0].read_on(None, prompt(length)).logits for length in range(1, 25)]
    with ThreadPoolExecutor(4) as pool:
        asked = [(readers[length % 2], prompt(length)) for length in range(1, 25)] * 4
        found = list(pool.map(lambda one: one[0].read_on(None, one[1]).logits, asked))
    assert all(np.array_equal(one, two) for one, two in zip(found, wanted * 4, strict=True))


@pytest.mark.parametrize("temperature", [0.01, 0.7, 1.0, 1.3, 99.0])
def test_probabilities_are_those_of_the_operators(tmp_path, temperature):
    """GEN-71, RL-4."""
    prefix = compiled(saved(tmp_path / "model", network_of())).read_on(None, prompt(9))
    logits = prefix.logits[0].copy()
    logits[3:90] = -np.inf
    with computing():
        wanted = (torch.from_numpy(logits) / temperature).softmax(dim=-1)
    assert same(wanted, prefix.chances(logits, temperature))


# ---------------------------------------------------------------------------------------- answers


@pytest.fixture(scope="module")
def artifact(narrow, tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifact")
    model = quantised(narrow, folder / "model", "w4a16", embeddings="int8")
    return write_artifact(folder / "tiny.kolm", model)


WAYS = [
    GenerationSettings(max_new_tokens=12),
    GenerationSettings(max_new_tokens=12, distribution=Distribution(temperature=0.8), seed=3),
    GenerationSettings(
        max_new_tokens=12,
        distribution=Distribution(temperature=1.5, top_k=50, top_p=0.9, min_p=0.01),
        seed=4,
    ),
    GenerationSettings(max_new_tokens=12, form=Labels(("north", "south ward"))),
    GenerationSettings(max_new_tokens=12, form=Regex("[a-c]{2,4}")),
    GenerationSettings(
        max_new_tokens=40, form=JsonSchema('{"type": "object", "maxProperties": 0}')
    ),
    GenerationSettings(max_new_tokens=12, stop=("e",)),
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_answers_are_those_of_torch_however_they_are_made(artifact, way):
    """GEN-71."""
    prompts = [Prompt(text=text) for text in ("ward", "a longer question about a ward", "x")]
    one, other = answering.opened(artifact), answering.by_decoder(artifact)
    assert one.model.network.__class__.__name__ == "CompiledDecoder"
    answers = one.answers(prompts, way)
    assert answers == other.answers(prompts, way)
    assert answers[1] == one.generate(prompts[1].text, settings=way)
    assert "".join(one.stream(prompts[1].text, settings=way)) == answers[1].text


def test_what_two_prompts_begin_with_is_read_once(artifact, monkeypatch):
    """GEN-30."""
    model, counts = answering.opened(artifact), []
    whole = NetworkReader.read

    def counted(self, rooms, tokens):
        counts.extend(map(len, tokens))
        return whole(self, rooms, tokens)

    monkeypatch.setattr(NetworkReader, "read", counted)
    system = "You are a careful clerk of a large hospital. " * 4
    for text in ("low mood", "low tide"):
        model.generate(text, system=system, settings=GenerationSettings(max_new_tokens=1))
    assert counts[0] > 180
    assert counts[1] < 40


NO_TORCH = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from kolm_build.surfaces.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def test_an_answer_needs_no_torch(artifact):
    """GEN-70: neither it nor transformers can be imported, and the answer is the same."""
    told = ["run", str(artifact), "ward", "--max-new-tokens", "8", "--temperature", "0.9"]
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, *told],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    way = GenerationSettings(max_new_tokens=8, distribution=Distribution(temperature=0.9))
    wanted = answering.by_decoder(artifact).generate("ward", settings=way)
    assert done.stdout == wanted.text + "\n"


# --------------------------------------------------------------------------------------- refusals


def test_a_model_that_asks_for_torch_says_what_to_install(source, tmp_path):
    """GEN-75."""
    pairs = quantised(source, tmp_path / "pairs", "nvfp4")
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, "run", str(pairs), "ward"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "pip install 'kolm-build[steps]'" in done.stderr


def test_without_weights_it_is_they_that_are_missing_and_not_torch(source, tmp_path):
    """GEN-75."""
    folder = shutil.copytree(source, tmp_path / "bare")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InvalidRecordError, match="no such file") as caught:
        compiled_speaker(find_model(folder), threads=1)
    assert "model.safetensors" in str(caught.value)


def test_what_it_does_not_know_goes_by_torch(source, tmp_path, monkeypatch):
    """GEN-72, GEN-74: activations on NVFP4's grid, wide heads, an unknown setting, no library."""
    good = quantised(source, tmp_path / "good", "w4a16")
    assert compiled_speaker(find_model(good), threads=1) is not None
    pairs = quantised(source, tmp_path / "pairs", "nvfp4")
    assert compiled_speaker(find_model(pairs), threads=1) is None
    assert answering.opened(pairs).generate("ward").text is not None
    wide = saved(tmp_path / "wide", network_of(head_dim=1026, num_key_value_heads=1))
    with pytest.raises(InvalidRecordError):
        compiled(wide)
    (good / "config.json").write_text(json.dumps(settings(good) | {"surprise": 1}))
    assert compiled_speaker(find_model(good), threads=1) is None
    (good / "config.json").write_text(json.dumps(settings(source)))
    monkeypatch.setattr(decoder_library, "is_compiled", lambda: False)
    assert compiled_speaker(find_model(source), threads=1) is None


@pytest.mark.parametrize("change", [float("nan"), float("inf")])
def test_scales_that_are_no_numbers_are_refused(source, tmp_path, change):
    """GEN-72, GEN-45."""
    folder = quantised(source, tmp_path / "model", "w4a16")
    compiled(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight_scale"][1, 0] = change
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InvalidRecordError):
        compiled(folder)


def test_logits_that_are_no_numbers_are_refused(tmp_path):
    """GEN-73."""
    network = network_of()
    with torch.no_grad():
        network.model.norm.weight[3] = float("inf")
    with pytest.raises(BuildError, match="not numbers"):
        compiled(saved(tmp_path / "model", network)).read_on(None, prompt(4))


INSIDE = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    "input_layernorm",
    "post_attention_layernorm",
)


@pytest.mark.parametrize("change", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", INSIDE)
def test_what_is_no_number_inside_reaches_the_logits_and_is_refused(tmp_path, name, change):
    """GEN-73: in any matrix and norm of the first of two layers."""
    network = network_of()
    with torch.no_grad():
        network.model.layers[0].get_submodule(name).weight.view(-1)[3] = change
    with pytest.raises(BuildError, match="not numbers"):
        compiled(saved(tmp_path / "model", network)).read_on(None, prompt(4))


NO_THREADS = """
import json, resource, sys
from pathlib import Path
from kolm_build.errors import MachineError
from kolm_build.runtime.compiled_loading import compiled_decoder
from kolm_build.runtime.mapped import map_file, mapped_tensors
folder = Path(sys.argv[1])
tensors = mapped_tensors(map_file(folder / "model.safetensors"))
settings = json.loads((folder / "config.json").read_text())
compiled_decoder(settings, tensors, threads=1)
used = next(int(one.split()[1]) for one in open("/proc/self/status") if one.startswith("VmSize"))
limit = (used << 10) + (4 << 20)  # less than a thread's stack
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for _ in range(2):
    try:
        compiled_decoder(settings, tensors, threads=3)
    except MachineError as error:
        print(error)
"""


def test_a_system_that_gives_no_thread_is_told_of(tmp_path):
    """GEN-73: and what began of the pool ends."""
    folder = saved(tmp_path / "model", network_of())
    done = subprocess.run(
        [sys.executable, "-c", NO_THREADS, str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no more threads") == 2


def test_a_token_that_does_not_exist_is_refused(tmp_path):
    """GEN-73."""
    reader = compiled(saved(tmp_path / "model", network_of()))
    for ids in ([300], [-1], [5, 1 << 20]):
        with pytest.raises(BuildError, match="token"):
            reader.read_on(None, ids)


def test_another_rounding_is_refused(tmp_path):
    """GEN-73, NUM-3: of the thread that opens a network, and of one that reads."""
    folder = saved(tmp_path / "model", network_of())
    reader = compiled(folder)
    c = ctypes.CDLL(None)
    upward = {"x86_64": 0x800, "aarch64": 0x400000}[__import__("platform").machine()]
    before = c.fegetround()
    c.fesetround(upward)
    try:
        with pytest.raises(FloatingPointEnvironmentError):
            reader.read_on(None, prompt(4))
        with pytest.raises(FloatingPointEnvironmentError):
            compiled(folder)
    finally:
        c.fesetround(before)
    reader.read_on(None, prompt(4))


def test_a_library_of_other_sources_is_refused(tmp_path, monkeypatch):
    """GEN-74."""
    monkeypatch.setattr(kernels, "sources", lambda *folders: "sha256:" + 64 * "0")
    with pytest.raises(KernelsMissingError, match="other sources"):
        Library()


def test_its_own_sources_are_among_those_it_names():
    """GEN-74: the folder `decoder` is compared too."""
    assert kernels.sources("decoder") != kernels.sources()


def test_an_instruction_set_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(MachineError):
        compiled(saved(tmp_path / "model", network_of()), isa="avx1024")


@pytest.mark.parametrize("theta", [10000, 10000.0, 500000.0, 123456.789])
@pytest.mark.parametrize("width", [2, 32, 64, 128])
def test_frequencies_are_those_of_the_operators(theta, width):
    """GEN-71."""
    from kolm_build.runtime.rotary import frequencies as by_torch

    numbers = {name: one for name, one in LLAMA3.items() if name not in ("rope_type", "rope_theta")}
    for kind in ("default", "linear", "llama3"):
        rotary = Rotary(kind=kind, theta=theta, numbers=numbers)
        with computing():
            wanted = by_torch(rotary, width)
        assert same(wanted, frequencies(rotary, width, Library()))
