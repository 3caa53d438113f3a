"""Tensors are mapped where they lie and never written back."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from kolm_build.errors import InvalidRecordError
from kolm_build.runtime.files import find_model
from kolm_build.runtime.weights import map_weights
from tests.runtime.artifacts import write_artifact
from tests.support.models import tiny_llama


def test_mapped_tensors_are_those_of_the_common_library(tmp_path):
    path = tiny_llama(tmp_path / "model") / "model.safetensors"
    found, wanted = map_weights(path).tensors, load_file(path)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        torch.arange(6, dtype=torch.float16),
        torch.tensor(1.5),
        torch.zeros(0, 3),
        torch.tensor([True, False]),
        torch.arange(3),
    ],
)
def test_every_dtype_and_shape_is_mapped(tmp_path, tensor):
    save_file({"one": tensor}, tmp_path / "a.safetensors")
    found = map_weights(tmp_path / "a.safetensors").tensors["one"]
    assert found.dtype == tensor.dtype
    assert torch.equal(found, tensor)


def test_writing_to_a_mapped_tensor_never_reaches_the_file(tmp_path):
    path = tiny_llama(tmp_path / "model") / "model.safetensors"
    before = path.read_bytes()
    for tensor in map_weights(path).tensors.values():
        tensor.zero_()
    assert path.read_bytes() == before


def test_weights_inside_an_artifact_are_aligned_and_equal(tmp_path):
    folder = tiny_llama(tmp_path / "model")
    artifact = write_artifact(tmp_path / "tiny.kolm", folder)
    inside, alone = find_model(artifact).weights(), find_model(folder).weights()
    for name, tensor in alone.tensors.items():
        assert torch.equal(inside.tensors[name], tensor)
        assert inside.tensors[name].data_ptr() % 4 == 0
    assert find_model(artifact).extents["model.safetensors"].offset % 64 == 0


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty"), (b"abc", "too short"), (b"\x00" * 64, "length"), (b"\xff" * 64, "length")],
)
def test_a_file_that_is_no_safetensors_file_is_refused_by_name(tmp_path, data, reason):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(InvalidRecordError, match=reason) as caught:
        map_weights(path)
    assert caught.value.file == str(path)


def test_a_dtype_that_cannot_be_computed_with_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"one": torch.zeros(2, dtype=torch.float8_e5m2)}, path)
    with pytest.raises(InvalidRecordError, match="dtype") as caught:
        map_weights(path)
    assert caught.value.where == "one"
