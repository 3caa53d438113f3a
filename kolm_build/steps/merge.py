"""``merge``: the adapters become part of the weights (spec/sft.md).

Each adapted matrix is W + (alpha / r) B A, computed in float32 and rounded once to the dtype of W.
One matrix is in memory at a time; all other files and tensors are copied.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from kolm_build.core.request import StepRequest
from kolm_build.errors import InvalidRecordError
from kolm_build.numerics.apply import applied_as
from kolm_build.steps._adapter import Adapter
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import REWARD_HEAD, files_of, input_folder, output_folder
from kolm_build.steps._params import check_none
from kolm_build.steps._tensors import changed
from kolm_build.steps._weights import Weight, read_weights, write_weights

WEIGHTS = "model.safetensors"


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run, within=applied_as)


def run(request: StepRequest, events: Events) -> None:
    """Write the model of input `model` with the adapter of input `adapter` merged in."""
    check_none(request.params)
    source, out = input_folder(request, "model"), output_folder(request)
    merged = merge(read_weights(source / WEIGHTS), Adapter.read(input_folder(request, "adapter")))
    write_weights(
        out / WEIGHTS, merged, lambda done, total: events.progress(done, total, unit="byte")
    )
    _copy_others(source, out)
    _copy_head(input_folder(request, "adapter"), out)


def merge(base: Sequence[Weight], adapter: Adapter) -> tuple[Weight, ...]:
    """The weights `base` with `adapter` merged in, each computed when it is written.

    Raises:
        InvalidRecordError: The adapter changes a matrix that the base does not have.
    """
    _check_targets(base, adapter)
    modules = {f"{module}.weight": module for module in adapter.pairs}
    return tuple(
        _merged(weight, adapter, modules[weight.name]) if weight.name in modules else weight
        for weight in base
    )


def _merged(weight: Weight, adapter: Adapter, module: str) -> Weight:
    def add(tensor: torch.Tensor) -> torch.Tensor:
        return (tensor.float() + adapter.delta(module)).to(tensor.dtype)

    return changed(weight, add)


def _check_targets(base: Sequence[Weight], adapter: Adapter) -> None:
    shapes = {weight.name: weight.shape for weight in base}
    for module, (down, up) in adapter.pairs.items():
        name, want = f"{module}.weight", (up.shape[0], down.shape[1])
        if shapes.get(name) != want:
            raise InvalidRecordError(
                "the adapter does not fit the model",
                file=WEIGHTS,
                where=name,
                expected=f"a matrix of shape {want}",
                actual=str(shapes.get(name, "no such matrix")),
            )


def _copy_head(adapter: Path, out: Path) -> None:
    """A reward model's head, which was trained beside the adapter (RL-22)."""
    for name in REWARD_HEAD:
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, out / name)


def _copy_others(source: Path, out: Path) -> None:
    for name in files_of(source):
        if name != WEIGHTS:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, out / name)
