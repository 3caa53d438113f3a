"""A quantised model in formats of plain numbers: dequantised, exactly (spec/exports.md)."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM
from transformers.utils.quantization_config import CompressedTensorsConfig

from kolm_build.core.safetensors import DTYPE_BYTES
from kolm_build.steps._weights import read_weights, write_weights
from tests.steps_data.exporting import artifact_of, imported_model, source_of
from tests.steps_ml.calling import run_step

PARAMS = {"method": "rtn", "group": 0, "keep": ""}


@pytest.fixture
def model(tmp_path):
    return imported_model(tmp_path / "made")


def quantised(tmp_path, model, scheme="w4a16", embeddings="keep"):
    """The artifact of `model` after the step `quantise`."""
    params = PARAMS | {"scheme": scheme, "embeddings": embeddings}
    done = run_step(
        "quantise", tmp_path, inputs={"model": model}, params=params, portable=(1, None)
    )
    return artifact_of(done.folder(), tmp_path / "artifact")


def plain(tmp_path, artifact, dtype="fp32"):
    inputs = {"artifact": artifact}
    return run_step("export-safetensors", tmp_path, inputs=inputs, params={"dtype": dtype})


def numbers(folder):
    """Name to float32 values of a folder in float32."""
    return {
        one.name: np.frombuffer(one.read(), "<f4").reshape(one.shape)
        for one in read_weights(folder / "model.safetensors")
    }


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
@pytest.mark.parametrize("scheme", ["w8a16", "fp8", "mxfp4", "nvfp4a16"])
def test_the_numbers_are_those_that_compressed_tensors_reads(tmp_path, model, scheme):
    """EXPORT-7: exactly; of NVFP4 after its own rounding to bfloat16."""
    pytest.importorskip("compressed_tensors")
    artifact = quantised(tmp_path, model, scheme)
    done = plain(tmp_path, artifact)
    assert "dequantised" in "\n".join(done.logged())
    assert "quantization_config" not in json.loads((done.folder() / "config.json").read_text())
    theirs = AutoModelForCausalLM.from_pretrained(
        artifact / "model",
        dtype=torch.float32,
        quantization_config=CompressedTensorsConfig(dequantize=True),
    ).state_dict()
    ours = AutoModelForCausalLM.from_pretrained(done.folder(), dtype=torch.float32).state_dict()
    seen = torch.bfloat16 if scheme == "nvfp4a16" else torch.float32
    for name, weight in theirs.items():
        assert torch.equal(ours[name].to(seen), weight.to(seen)), name


def test_the_logits_of_packed_integers_are_those_of_the_numbers(tmp_path, model):
    """EXPORT-7: transformers on the quantised folder and on the plain one, in groups of two sizes.

    Its `dequantize=True` takes one size of groups for all layers, and fails here.
    """
    pytest.importorskip("compressed_tensors")
    artifact = quantised(tmp_path, model, "w4a16")
    ids = torch.arange(40).reshape(2, 20)
    theirs, ours = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (artifact / "model", plain(tmp_path, artifact).folder())
    )
    assert torch.equal(theirs(ids).logits, ours(ids).logits)


@pytest.mark.parametrize("embeddings", ["keep", "int8"])
def test_a_gguf_file_has_the_same_numbers(tmp_path, model, embeddings):
    """EXPORT-7: rounded once to half precision."""
    artifact = quantised(tmp_path, model, "w8a16", embeddings)
    known = numbers(plain(tmp_path, artifact).folder())
    assert "lm_head.weight" not in known, "a tied head is the embedding"
    done = run_step("export-gguf", tmp_path, inputs={"artifact": artifact}, params={"kind": "f16"})
    assert "dequantised" in "\n".join(done.logged())
    reader = GGUFReader(done.folder() / "tiny.gguf")
    (down,) = [one for one in reader.tensors if one.name == "blk.1.ffn_down.weight"]
    (embedding,) = [one for one in reader.tensors if one.name == "token_embd.weight"]
    for tensor, name in (
        (down, "model.layers.1.mlp.down_proj.weight"),
        (embedding, "model.embed_tokens.weight"),
    ):
        assert (tensor.data == known[name].astype("<f2")).all()


def test_stored_the_codes_stay(tmp_path, model):
    """EXPORT-8: the folder is still compressed-tensors', and names its artifact."""
    artifact = quantised(tmp_path, model, "nvfp4a16", "int8")
    out = plain(tmp_path, artifact, "stored").folder()
    first, second = (
        {one.name: bytes(one.read()) for one in read_weights(folder, dtypes=DTYPE_BYTES)}
        for folder in (artifact / "model" / "model.safetensors", out / "model.safetensors")
    )
    assert first == second
    assert (out / "config.json").read_bytes() == (artifact / "model" / "config.json").read_bytes()
    assert source_of(artifact).encode() in (out / "model.safetensors").read_bytes()[:8192]


def test_a_modelpack_says_how_the_weights_are_quantised(tmp_path, model):
    """EXPORT-16: and not how many parameters there are, since codes are packed."""
    artifact = quantised(tmp_path, model, "w4a16")
    out = run_step("export-modelpack", tmp_path, inputs={"artifact": artifact}).folder()
    blobs = out / "blobs" / "sha256"
    (named,) = json.loads((out / "index.json").read_text())["manifests"]
    manifest = json.loads((blobs / named["digest"][7:]).read_bytes())
    config = json.loads((blobs / manifest["config"]["digest"][7:]).read_bytes())["config"]
    assert config["quantization"] == "pack-quantized"
    assert "paramSize" not in config


@pytest.mark.parametrize("part", ["weight_scale", "weight_packed"])
def test_a_layer_that_lacks_a_tensor_is_refused(tmp_path, model, part):
    """EXPORT-7."""
    artifact = quantised(tmp_path, model, "w4a16")
    name = f"model.layers.0.mlp.up_proj.{part}"
    folder = tmp_path / "less"
    (artifact / "model").rename(folder)
    kept = read_weights(folder / "model.safetensors", dtypes=DTYPE_BYTES)
    less = [(one, bytes(one.read())) for one in kept if one.name != name]
    (folder / "model.safetensors").unlink()
    write_weights(
        folder / "model.safetensors",
        [replace(one, read=lambda data=data: memoryview(data)) for one, data in less],
    )
    (artifact / "manifest.json").unlink()
    artifact.rmdir()
    told = plain(tmp_path, artifact_of(folder, artifact)).refusal()
    assert "model.layers.0.mlp.up_proj" in told["where"]


def test_a_quantisation_that_is_not_known_is_refused(tmp_path, model):
    """EXPORT-7."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}})
    )
    told = plain(tmp_path, artifact_of(model, tmp_path / "artifact")).refusal()
    assert (told["file"], told["where"].split(".")[0]) == ("config.json", "quantization_config")
