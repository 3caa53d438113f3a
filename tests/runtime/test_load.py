"""A model is loaded from a folder or an artifact, and a bad one is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from kolm_build.errors import InvalidDataError, InvalidRecordError
from kolm_build.runtime.files import find_model
from kolm_build.runtime.loading import load
from kolm_build.runtime.modules import speaker
from kolm_build.runtime.settings import GenerationSettings
from tests.runtime.artifacts import write_artifact
from tests.support.models import tiny_llama

NINE = GenerationSettings(max_new_tokens=9)


@pytest.fixture
def folder(tmp_path):
    return tiny_llama(tmp_path / "model")


def asked(path):
    return speaker(load(str(path)), is_portable=False)


def edit(folder, name, change):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_an_artifact_answers_as_its_folder_does(tmp_path, folder):
    """EVAL-1: one code path for a folder and a file, with and without a system text."""
    artifact = write_artifact(tmp_path / "tiny.kolm", folder)
    alone, inside = asked(folder), asked(artifact)
    for system in ("", "Be brief."):
        answer = alone.generate("low mood", system=system, settings=NINE)
        assert inside.generate("low mood", system=system, settings=NINE) == answer
        assert 1 <= answer.output_tokens <= 9
    assert answer.prompt_tokens > len("low mood")


def test_the_network_computes_on_the_mapped_pages(folder):
    model = load(folder)
    mapped = {name: one.data_ptr() for name, one in model.network.named_parameters()}
    assert len(set(mapped.values())) == len(mapped)
    assert model.network.lm_head.weight is model.network.model.embed_tokens.weight
    assert model.window == 512


def test_the_compute_dtype_may_differ_from_the_stored_one(folder):
    network = load(folder, dtype=torch.bfloat16).network
    assert {one.dtype for one in network.parameters()} == {torch.bfloat16}


def test_a_prompt_that_does_not_fit_the_window_is_refused(folder):
    with pytest.raises(InvalidDataError, match="window") as caught:
        asked(folder).generate("long " * 200, settings=GenerationSettings(max_new_tokens=4))
    assert caught.value.expected == "at most 512 tokens"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"model_type": "t5"}, "config.json: model_type"),
        ({"model_type": "no-such-type"}, "config.json: model_type"),
        ({"model_type": ["llama"]}, "config.json: model_type"),
        ({"num_hidden_layers": 3}, "model.safetensors"),
        ({"num_hidden_layers": 1}, "model.safetensors"),
        ({"tie_word_embeddings": False}, "model.safetensors"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(folder, change, where):
    edit(folder, "config.json", change)
    with pytest.raises(InvalidRecordError) as caught:
        load(folder)
    assert caught.value.file == str(folder)
    assert caught.value.where == where


def test_a_tensor_of_another_shape_is_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InvalidRecordError, match="do not fit"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
)
def test_a_missing_file_is_refused_by_name(folder, name):
    (folder / name).unlink()
    with pytest.raises(InvalidRecordError, match="no such file") as caught:
        load(folder)
    assert caught.value.where == name


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_file_is_refused_by_name(folder, name, data):
    (folder / name).write_bytes(data)
    with pytest.raises(InvalidRecordError) as caught:
        load(folder)
    assert caught.value.where == name


def test_weights_that_are_not_numbers_are_an_error(folder):
    """NAT-6."""
    from kolm_build.errors import BuildError

    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BuildError, match="not numbers"):
        asked(folder).generate("hello", settings=GenerationSettings(max_new_tokens=2))


def test_a_place_without_a_model_is_refused(tmp_path):
    with pytest.raises(InvalidRecordError, match="no such model"):
        find_model(tmp_path / "nowhere")
    (tmp_path / "file.kolm").write_bytes(b"not an archive" * 9)
    with pytest.raises(InvalidRecordError) as caught:
        find_model(tmp_path / "file.kolm")
    assert caught.value.file == str(tmp_path / "file.kolm")
