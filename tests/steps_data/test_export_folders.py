"""A model as a Hugging Face folder and as an OCI layout (spec/exports.md)."""

import hashlib
import json
import shutil
import subprocess

import numpy as np
import pytest

from kolm_build.core.safetensors import header_length, is_canonical, parse_header
from kolm_build.steps import export_modelpack, export_safetensors
from tests.steps_data.calling import run_step
from tests.steps_data.exporting import artifact_of, imported_model, source_of
from tests.support.models import tiny_llama


@pytest.fixture
def artifact(tmp_path):
    return artifact_of(imported_model(tmp_path / "made"), tmp_path / "artifact")


def folder(tmp_path, artifact, dtype="stored"):
    inputs, params = {"artifact": artifact}, {"dtype": dtype}
    return run_step(export_safetensors, tmp_path, inputs=inputs, params=params).out


def weights(path):
    """The header of a safetensors file, and the bytes after it."""
    data = path.read_bytes()
    length = header_length(data[:8], len(data))
    header = parse_header(data[8 : 8 + length], len(data))
    assert is_canonical(data[8 : 8 + length], header)
    return header, data[header.data_start :]


class TestSafetensors:
    def test_what_is_stored_stays_but_for_the_name_of_the_source(self, tmp_path, artifact):
        """EXPORT-4, EXPORT-8."""
        out, model = folder(tmp_path, artifact), artifact / "model"
        names = sorted(path.name for path in model.iterdir())
        assert sorted(path.name for path in out.iterdir()) == names
        for name in names:
            if name != "model.safetensors":
                assert (out / name).read_bytes() == (model / name).read_bytes()
        header, data = weights(out / "model.safetensors")
        before, same = weights(model / "model.safetensors")
        assert header.metadata == {"format": "pt", "kolm.source": source_of(artifact)}
        assert (header.tensors, data) == (before.tensors, same)

    def test_numbers_of_another_dtype_are_rounded_once(self, tmp_path, artifact):
        """EXPORT-8."""
        out = folder(tmp_path, artifact, "fp16")
        header, data = weights(out / "model.safetensors")
        _, before = weights(artifact / "model" / "model.safetensors")
        assert {one.dtype for one in header.tensors} == {"F16"}
        assert data == np.frombuffer(before, "<f4").astype("<f2").tobytes()
        assert json.loads((out / "config.json").read_text())["dtype"] == "float16"
        assert header.metadata["kolm.source"] == source_of(artifact)

    def test_transformers_loads_the_folder_with_equal_logits(self, tmp_path):
        """The same weights through the file, as a person would load them."""
        torch = pytest.importorskip("torch")
        from transformers import AutoModelForCausalLM

        model = tiny_llama(tmp_path / "model")
        out = folder(tmp_path, artifact_of(model, tmp_path / "artifact"))
        ids = torch.arange(40).reshape(2, 20)
        first, second = (
            AutoModelForCausalLM.from_pretrained(one)(input_ids=ids).logits for one in (model, out)
        )
        assert torch.equal(first, second)


class TestModelPack:
    def layout(self, tmp_path, artifact):
        return run_step(export_modelpack, tmp_path, inputs={"artifact": artifact}).out

    def blob(self, out, descriptor):
        data = (
            out / "blobs" / "sha256" / descriptor["digest"].removeprefix("sha256:")
        ).read_bytes()
        assert descriptor["digest"] == "sha256:" + hashlib.sha256(data).hexdigest()
        assert descriptor["size"] == len(data)
        return data

    def test_every_file_is_a_layer_under_the_digest_that_the_artifact_has(self, tmp_path, artifact):
        """EXPORT-16, EXPORT-17."""
        out = self.layout(tmp_path, artifact)
        assert json.loads((out / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
        (named,) = json.loads((out / "index.json").read_text())["manifests"]
        manifest = json.loads(self.blob(out, named))
        assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
        assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
        layers = {one["annotations"]["org.cncf.model.filepath"]: one for one in manifest["layers"]}
        model = artifact / "model"
        assert list(layers) == ["manifest.json", *sorted(path.name for path in model.iterdir())]
        for path, layer in layers.items():
            file = artifact / path if path == "manifest.json" else model / path
            assert self.blob(out, layer) == file.read_bytes()
        assert layers["manifest.json"]["digest"] == source_of(artifact)
        assert layers["model.safetensors"]["mediaType"].endswith("weight.v1.raw")
        assert layers["tokenizer.json"]["mediaType"].endswith("weight.config.v1.raw")
        assert layers["manifest.json"]["mediaType"].endswith("doc.v1.raw")
        blobs = {path.name for path in (out / "blobs" / "sha256").iterdir()}
        known = [named, manifest["config"], *manifest["layers"]]
        assert blobs == {one["digest"].removeprefix("sha256:") for one in known}

    def test_the_layout_names_its_artifact_and_no_time_or_owner(self, tmp_path, artifact):
        """EXPORT-4, EXPORT-18."""
        out = self.layout(tmp_path, artifact)
        (named,) = json.loads((out / "index.json").read_text())["manifests"]
        data = self.blob(out, named)
        manifest = json.loads(data)
        assert manifest["annotations"]["kolm.source"] == source_of(artifact)
        assert manifest["annotations"]["org.opencontainers.image.licenses"] == "Apache-2.0"
        sorted_once = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
        assert data.decode() == sorted_once
        for layer in manifest["layers"]:
            facts = json.loads(layer["annotations"]["org.cncf.model.file.metadata+json"])
            assert (facts["uid"], facts["gid"], facts["mode"]) == (0, 0, 0o644)
            assert facts["mtime"] == "1970-01-01T00:00:00Z"

    def test_the_configuration_has_the_members_of_the_specification(self, tmp_path, artifact):
        """EXPORT-16: those of its schema, and nothing that is not known."""
        out = self.layout(tmp_path, artifact)
        (named,) = json.loads((out / "index.json").read_text())["manifests"]
        manifest = json.loads(self.blob(out, named))
        config = json.loads(self.blob(out, manifest["config"]))
        assert config == {
            "config": {
                "architecture": "transformer",
                "capabilities": {"inputTypes": ["text"], "outputTypes": ["text"]},
                "format": "safetensors",
                "paramSize": "90.7k",
                "precision": "float32",
            },
            "descriptor": {"family": "llama", "licenses": ["Apache-2.0"], "name": "tiny"},
            "modelfs": {
                "diffIds": [layer["digest"] for layer in manifest["layers"]],
                "type": "layers",
            },
        }

    @pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
    def test_skopeo_copies_the_layout(self, tmp_path, artifact):
        """A reader of somebody else, which checks every digest on its way."""
        out = self.layout(tmp_path, artifact)
        copy = tmp_path / "copy"
        subprocess.run(["skopeo", "copy", f"oci:{out}:tiny", f"dir:{copy}"], check=True)
        weights_file = artifact / "model" / "model.safetensors"
        digest = hashlib.sha256(weights_file.read_bytes()).hexdigest()
        assert (copy / digest).read_bytes() == weights_file.read_bytes()


def test_a_parameter_that_is_not_known_is_refused(tmp_path, artifact):
    """STEP-6."""
    inputs, params = {"artifact": artifact}, {"dtype": "int3"}
    told = run_step(export_safetensors, tmp_path, inputs=inputs, params=params).refusal
    assert told["where"] == "dtype"
    told = run_step(export_modelpack, tmp_path, inputs=inputs, params={"level": 9}).refusal
    assert told["reason"]
