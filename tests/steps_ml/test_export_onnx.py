"""A model as ONNX: what another runtime computes of it, and what is not in the file."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from kolm_build.runtime.loading import load
from tests.steps_data.exporting import artifact_of, imported_model, source_of
from tests.steps_ml.calling import run_step
from tests.support.models import ROOT

pytest.importorskip("onnxscript", reason="onnx and onnxscript are not installed")
onnx = pytest.importorskip("onnx")

PROGRAM = """
import sys
from pathlib import Path
from tests.steps_ml.calling import run_step
done = run_step("export-onnx", Path(sys.argv[2]), inputs={"artifact": Path(sys.argv[1])},
                portable=(int(sys.argv[3]), sys.argv[4] or None))
print(done.folder())
"""


def exported(artifact, place, *, threads=1, isa="", **environment):
    """The folder that the step makes in a process of its own."""
    place.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, artifact, place, str(threads), isa],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return ROOT / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    root = tmp_path_factory.mktemp("onnx")
    return artifact_of(imported_model(root / "made"), root / "artifact")


@pytest.fixture(scope="module")
def made(artifact, tmp_path_factory):
    return exported(artifact, tmp_path_factory.mktemp("first") / "run")


def test_another_runtime_computes_the_same_logits(artifact, made):
    """EXPORT-19: for any batch and length, as far as two orders of a sum are the same."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(made / "model.onnx", providers=["CPUExecutionProvider"])
    network = load(artifact / "model", dtype=torch.float32).network
    for shape in ((1, 1), (1, 13), (3, 40)):
        ids = torch.arange(np.prod(shape)).reshape(shape) % 200
        with torch.inference_mode():
            known = network(input_ids=ids).logits.numpy()
        (found,) = session.run(["logits"], {"input_ids": ids.numpy()})
        assert found.shape == known.shape
        assert np.abs(found - known).max() < 1e-4


def test_the_file_names_its_artifact_and_nothing_of_where_it_was_traced(artifact, made):
    """EXPORT-4, EXPORT-20."""
    model = onnx.load(made / "model.onnx", load_external_data=False)
    assert {one.key: one.value for one in model.metadata_props} == {
        "kolm.source": source_of(artifact)
    }
    for node in model.graph.node:
        assert not node.metadata_props
        assert not node.doc_string
    data = (made / "model.onnx").read_bytes()
    for word in (b".py", b"site-packages", b"kolm_build", str(ROOT).encode()):
        assert word not in data


def test_the_weights_are_beside_the_model_and_so_are_the_tokenizers_files(artifact, made):
    """EXPORT-19."""
    names = {path.name for path in (artifact / "model").iterdir()} - {"model.safetensors"}
    assert {path.name for path in made.iterdir()} == names | {"model.onnx", "model.onnx.data"}
    onnx.checker.check_model(made / "model.onnx")


def test_the_bytes_depend_on_no_process_and_no_instruction_set(artifact, made, tmp_path):
    """EXPORT-5: other threads, hash seed and vector units of torch, numpy and the kernels."""
    again = exported(
        artifact,
        tmp_path / "again",
        threads=2,
        isa="baseline",
        PYTHONHASHSEED="7",
        ATEN_CPU_CAPABILITY="default",
        NPY_DISABLE_CPU_FEATURES="X86_V3 X86_V4",
    )
    for path in made.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_parameter_is_refused(artifact, tmp_path):
    """STEP-6."""
    inputs, params = {"artifact": artifact}, {"opset": 9}
    told = run_step("export-onnx", tmp_path, inputs=inputs, params=params, portable=(1, None))
    assert told.refusal()["reason"]
