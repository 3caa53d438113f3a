import hashlib
import json
import struct

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from kolm_build.core.safetensors import header_length, is_canonical, parse_header
from kolm_build.errors import InvalidRecordError
from kolm_build.steps import import_gguf
from kolm_build.steps._gguf import read_gguf
from tests.steps_data.calling import run_step
from tests.support.models import tiny_gguf

FILES = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]


def ran(tmp_path, *, dtype="fp32", damage=lambda data: data, **changes):
    """The step on a tiny GGUF file, and the weights that were put into it."""
    folder = tmp_path / f"source-{len(list(tmp_path.glob('source-*')))}"
    folder.mkdir()
    weights = tiny_gguf(folder / "tiny.gguf", **changes)
    (folder / "tiny.gguf").write_bytes(damage((folder / "tiny.gguf").read_bytes()))
    done = run_step(import_gguf, tmp_path, inputs={"source": folder}, params={"dtype": dtype})
    return done, weights


def tensors(path):
    """Name to dtype, shape and bytes, read with the core's own header reader."""
    data = path.read_bytes()
    length = header_length(data[:8], len(data))
    header = parse_header(data[8 : 8 + length], len(data))
    assert is_canonical(data[8 : 8 + length], header)
    return {
        tensor.name: (
            tensor.dtype,
            tensor.shape,
            data[header.data_start + tensor.begin : header.data_start + tensor.end],
        )
        for tensor in header.tensors
    }


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_what_went_in_comes_out(tmp_path, architecture):
    """STEP-21, STEP-22: rows of queries and keys are where Hugging Face has them."""
    done, weights = ran(tmp_path, architecture=architecture)
    found = tensors(done.out / "model.safetensors")
    assert {name: values.shape for name, values in weights.items()} == {
        name: shape for name, (_, shape, _) in found.items()
    }
    assert all(found[name][2] == values.tobytes() for name, values in weights.items())


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1"])
def test_blocks_become_the_values_they_stand_for(tmp_path, kind):
    """STEP-21: dequantised is what the file computes with."""
    done, weights = ran(tmp_path, kind=kind)
    name = "model.layers.0.mlp.up_proj.weight"
    stored = GGMLQuantizationType[kind]
    expected = quants.dequantize(quants.quantize(weights[name], stored), stored)
    found = tensors(done.out / "model.safetensors")[name][2]
    assert found == np.asarray(expected, np.float32).tobytes()


def test_the_folder_has_the_plain_form(tmp_path):
    """STEP-18, STEP-23."""
    done, _ = ran(tmp_path, dtype="bf16")
    assert sorted(path.name for path in done.out.iterdir()) == FILES
    config = json.loads((done.out / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-05
    assert config["dtype"] == "bfloat16"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["eos_token_id"] == 2
    assert "transformers_version" not in config
    for name in FILES:
        if name.endswith(".json"):
            check_form(done.out / name)


def check_form(path):
    """One line for the tokenizer, indented lines for the others."""
    form = {"separators": (",", ":")} if path.name == "tokenizer.json" else {"indent": 2}
    text = path.read_text("utf-8")
    assert text == json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False, **form) + "\n"


def test_two_runs_give_the_same_bytes(tmp_path):
    digests = [
        [hashlib.sha256((ran(tmp_path)[0].out / name).read_bytes()).digest() for name in FILES]
        for _ in range(2)
    ]
    assert digests[0] == digests[1]


def test_the_tokenizer_cuts_as_the_file_says(tmp_path):
    """STEP-24."""
    done, _ = ran(tmp_path)
    tokenizer = Tokenizer.from_file(str(done.out / "tokenizer.json"))
    text = "caf\u00e9 12<|im_end|>"
    ids = tokenizer.encode(text).ids
    assert ids[-1] == 2
    assert len(ids) == len("caf\u00e9 12".encode()) + 1
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"tokenizer__ggml__pre": "deepseek"}, "tokenizer.ggml.pre"),
        ({"tokenizer__ggml__model": "llama"}, "tokenizer.ggml.model"),
        ({"tokenizer__ggml__merges": ["ab"]}, "tokenizer.ggml.merges"),
        ({"tokenizer__ggml__merges": ["a c"]}, "tokenizer.ggml.merges"),
        ({"tokenizer__ggml__eos_token_id": 9999}, "tokenizer.ggml.eos_token_id"),
        ({"tokenizer__ggml__token_type": [1, 1]}, "tokenizer.ggml.token_type"),
        ({"llama__rope__scaling__type": "yarn"}, "llama.rope.scaling.type"),
        ({"llama__block_count": None}, "llama.block_count"),
        ({"llama__block_count": 3}, "blk.2.attn_k.weight"),
        ({"llama__block_count": 1}, "blk.1.attn_k.weight"),
        ({"llama__feed_forward_length": 64}, "blk.0.ffn_gate.weight"),
        ({"llama__attention__head_count_kv": 4}, "blk.0.attn_k.weight"),
    ],
)
def test_metadata_that_does_not_fit_is_named(tmp_path, changes, where):
    """STEP-22, STEP-24."""
    refusal = ran(tmp_path, **changes)[0].refusal
    assert (refusal["code"], refusal["file"], refusal["where"]) == (
        "input.invalid",
        "tiny.gguf",
        where,
    )


def test_an_architecture_that_is_not_known_is_told_with_those_that_are(tmp_path):
    refusal = ran(
        tmp_path,
        damage=lambda data: data.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gemma", 1),
    )[0].refusal
    assert refusal["where"] == "general.architecture"
    assert refusal["expected"] == "llama or qwen2"


def test_a_weight_that_is_not_finite_is_refused(tmp_path):
    """STEP-19."""

    def damage(data):
        return data[:-4] + struct.pack("<f", float("nan"))

    refusal = ran(tmp_path, damage=damage)[0].refusal
    assert refusal["reason"] == "a weight that is not a finite number"
    assert refusal["file"] == "tiny.gguf"


def test_a_dtype_that_is_not_known_is_refused(tmp_path):
    assert ran(tmp_path, dtype="int4")[0].refusal["where"] == "params.dtype"


@pytest.mark.parametrize(
    ("damage", "reason", "where"),
    [
        (lambda data: b"", "not a GGUF file", None),
        (lambda data: b"GGML" + data[4:], "not a GGUF file", "magic"),
        (lambda data: data[:4] + b"\1\0\0\0" + data[8:], "a GGUF version", "version"),
        (lambda data: data[:4] + b"\0\0\0\3" + data[8:], "a GGUF version", "version"),
        (lambda data: data[:8] + b"\xff" * 8 + data[16:], "too many entries", None),
        (lambda data: data[:16] + b"\xff" * 8 + data[24:], "too many entries", None),
        (lambda data: data[:24] + b"\xff" * 8 + data[32:], "the file ends early", "metadata[0]"),
        (lambda data: data[:-1000], "the file ends before its tensors do", "blk."),
        (lambda data: data[:2000], "the file ends early", None),
    ],
)
def test_a_damaged_file_is_told_with_what_and_where(tmp_path, damage, reason, where):
    """GGUF-1, GGUF-2, GGUF-4, GGUF-5."""
    refusal = ran(tmp_path, damage=damage)[0].refusal
    assert refusal["file"] == "tiny.gguf"
    assert refusal["reason"].startswith(reason)
    if where is not None:
        assert refusal["where"].startswith(where)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    tiny_gguf(folder / "tiny.gguf")
    return folder, (folder / "tiny.gguf").read_bytes()


class TestHostileFiles:
    """GGUF-2, GGUF-3, GGUF-4: whatever the bytes are, reading them ends in a value or an error."""

    @settings(max_examples=200)
    @given(at=st.integers(0, 20_000), data=st.binary(min_size=1, max_size=8))
    def test_overwritten_bytes(self, start, at, data):
        folder, good = start
        (folder / "bad.gguf").write_bytes(good[:at] + data + good[at + len(data) :])
        try:
            read_gguf(folder / "bad.gguf")
        except InvalidRecordError:
            return

    @settings(max_examples=100)
    @given(length=st.integers(0, 20_000))
    def test_every_cut_is_refused(self, start, length):
        folder, good = start
        (folder / "cut.gguf").write_bytes(good[:length])
        with pytest.raises(InvalidRecordError):
            read_gguf(folder / "cut.gguf")

    def test_a_name_twice_and_a_tensor_over_another(self, start):
        folder, good = start
        bad = good.replace(b"blk.1.attn_q.weight", b"blk.0.attn_q.weight")
        (folder / "twice.gguf").write_bytes(bad)
        with pytest.raises(InvalidRecordError, match="twice"):
            read_gguf(folder / "twice.gguf")


@pytest.mark.ml
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("architecture", "kind"), [("llama", "Q8_0"), ("qwen2", "F32")])
def test_transformers_own_loader_gives_the_same_weights(tmp_path, architecture, kind):
    """STEP-21."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import GgufConfig

    done, _ = ran(tmp_path, architecture=architecture, kind=kind)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "source-0",
        gguf_file="tiny.gguf",
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    ).state_dict()
    ours = load_file(done.out / "model.safetensors")
    assert ours.keys() == theirs.keys() - {"lm_head.weight"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.ml
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_transformers_loads_the_folder_whole(tmp_path, architecture):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done, _ = ran(tmp_path, architecture=architecture, dtype="bf16")
    model, told = AutoModelForCausalLM.from_pretrained(done.out, output_loading_info=True)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(done.out)
    assert tokenizer.eos_token_id == model.config.eos_token_id == 2
    messages = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
