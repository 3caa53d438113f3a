"""``merge``: the adapters become part of the weights (spec/sft.md, algorithms-adapters.md).

Each adapted matrix is what its kind of adapter makes of W, W + (alpha / r) B A for LoRA, computed
in float32 and rounded once to the dtype of W. One matrix is in memory at a time; all other files
and tensors are copied.
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
from kolm_build.steps._base import NF4
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import REWARD_HEAD, copy_others, input_folder, output_folder
from kolm_build.steps._nf4 import rounded
from kolm_build.steps._params import check_none
from kolm_build.steps._tensors import changed
from kolm_build.steps._weights import Weight, read_weights, write_weights
from kolm_build.steps._without_adapter import plain_model

WEIGHTS = "model.safetensors"


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run, within=applied_as)


def run(request: StepRequest, events: Events) -> None:
    """Write the model of input `model` with the adapter of input `adapter` merged in."""
    check_none(request.params)
    source, out = plain_model(request), output_folder(request)
    merged = merge(read_weights(source / WEIGHTS), Adapter.read(input_folder(request, "adapter")))
    write_weights(
        out / WEIGHTS, merged, lambda done, total: events.progress(done, total, unit="byte")
    )
    copy_others(source, out, but=WEIGHTS)
    _copy_head(input_folder(request, "adapter"), out)


def merge(base: Sequence[Weight], adapter: Adapter) -> tuple[Weight, ...]:
    """The weights `base` with `adapter` merged in, each computed when it is written.

    Raises:
        InvalidRecordError: The adapter changes a matrix that the base does not have, or was trained
            on other weights.
    """
    _check_targets(base, adapter)
    if adapter.base is not None:
        adapter.base.check(base)
    return tuple(_merged(weight, adapter) for weight in base)


def _merged(weight: Weight, adapter: Adapter) -> Weight:
    module, _, last = weight.name.rpartition(".")
    if module not in adapter.layers:
        return weight
    if last == "weight":
        return changed(weight, lambda one: _weight(one.float(), module, adapter).to(one.dtype))
    if last == "bias" and adapter.kind.scales_bias:
        return changed(weight, lambda one: adapter.bias(module, one.float()).to(one.dtype))
    return weight


def _weight(base: torch.Tensor, module: str, adapter: Adapter) -> torch.Tensor:
    """The merged matrix; an adapter that saw NF4 is merged into what it saw (ADPT-11)."""
    quantised = adapter.base is not None and adapter.base.stored == NF4
    return adapter.weight(module, rounded(base) if quantised else base)


def _check_targets(base: Sequence[Weight], adapter: Adapter) -> None:
    shapes = {weight.name: weight.shape for weight in base}
    for module in adapter.layers:
        name, want = f"{module}.weight", adapter.shape(module)
        found = shapes.get(name, ())
        fits = len(found) == len(want) and all(
            size in (-1, real) for size, real in zip(want, found, strict=True)
        )
        if not fits:
            raise InvalidRecordError(
                "the adapter does not fit the model",
                file=WEIGHTS,
                where=name,
                expected=f"a matrix of shape {want}",
                actual=str(found or "no such matrix"),
            )


def _copy_head(adapter: Path, out: Path) -> None:
    """A reward model's head, which was trained beside the adapter (RL-22)."""
    for name in REWARD_HEAD:
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, out / name)
