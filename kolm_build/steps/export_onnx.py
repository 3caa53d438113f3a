"""``export-onnx``: an artifact's model as ONNX, in float32 (spec/exports.md).

The network is traced by torch's exporter; the weights, and what the network works out once from its
settings, are made with the portable kernels, so that the file is the same on every machine. What
the exporter notes of where it was is taken out.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch

from kolm_build.core.request import StepRequest
from kolm_build.numerics.apply import applied_as
from kolm_build.runtime.loading import load
from kolm_build.steps._artifact import SOURCE, Artifact
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import files_of, output_folder
from kolm_build.steps._model_tree import WEIGHTS
from kolm_build.steps._params import check_none
from kolm_build.steps.export_safetensors import write_plain

FILE = "model.onnx"
DATA = f"{FILE}.data"

_IN_FILE_BYTES = 1024
"""Tensors up to this size stay in the model's own file."""


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run)


def run(request: StepRequest, events: Events) -> None:
    """Write the model, its data, and the files beside the weights."""
    check_none(request.params)
    artifact, out = Artifact.read(request), output_folder(request)
    plain = Path(request.scratch) / "plain"
    plain.mkdir()
    for path, _ in artifact.members:
        if path != WEIGHTS:
            shutil.copyfile(artifact.model / path, plain / path)
    write_plain(artifact, plain, "F32", events)
    with applied_as(request):
        network = load(plain, dtype=torch.float32).network
    model = _traced(network)
    _clean(model)
    model.metadata_props.add(key=SOURCE, value=artifact.id)
    _save(model, out)
    for name in files_of(plain):
        if name != WEIGHTS:
            shutil.copyfile(plain / name, out / name)
    events.log(f"{len(model.graph.node)} nodes, operator set {model.opset_import[0].version}")


class _Logits(torch.nn.Module):
    """A network as a function from tokens to what it expects after each of them."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits, [batch, sequence, vocabulary], of tokens, [batch, sequence]."""
        logits: torch.Tensor = self.network(input_ids=input_ids, use_cache=False).logits
        return logits


def _traced(network: Any) -> Any:
    """The network as an ONNX model, batch and sequence of any length."""
    network.set_attn_implementation("eager")
    some = torch.zeros((2, 7), dtype=torch.int64)
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    with warnings.catch_warnings(action="ignore"):  # of the exporter's own making
        made = torch.onnx.export(
            _Logits(network).eval(),
            (some,),
            dynamo=True,
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_shapes={"input_ids": free},
            verbose=False,
        )
    assert made is not None, "the dynamo exporter gives a program"
    return made.model_proto


def _clean(model: Any) -> None:
    """Take out what tells where and how the network was traced (EXPORT-20)."""
    graph = model.graph
    for one in (
        *(model, graph, *graph.node, *graph.initializer),
        *(*graph.input, *graph.output, *graph.value_info, *model.functions),
    ):
        one.ClearField("metadata_props")
        one.ClearField("doc_string")
    graph.ClearField("value_info")


def _save(model: Any, out: Path) -> None:
    onnx.external_data_helper.convert_model_to_external_data(
        model, all_tensors_to_one_file=True, location=DATA, size_threshold=_IN_FILE_BYTES
    )
    model = onnx.external_data_helper.write_external_data_tensors(model, str(out))
    (out / FILE).write_bytes(model.SerializeToString(deterministic=True))
