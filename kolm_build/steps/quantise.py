"""``quantise``: a model whose linear layers are stored in fewer bits (spec/quantization.md).

The folder that is written is compressed-tensors': transformers and vLLM read it as it is. One
matrix is in memory in full precision at a time; what is written is packed, and small.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from kolm_build.core.quantisation_config import KEY, to_config
from kolm_build.core.request import StepRequest
from kolm_build.errors import InvalidRecordError
from kolm_build.numerics.apply import applied_as
from kolm_build.runtime.weights import DTYPES
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import copy_others, input_folder, output_folder, write_json
from kolm_build.steps._model_tree import CONFIG, WEIGHTS, read_config
from kolm_build.steps._weights import Weight, check_finite, read_weights, size_bytes, write_weights
from kolm_build.steps._without_adapter import plain_model
from kolm_build.steps.quantisation.layers import Chosen, choose, layers_of
from kolm_build.steps.quantisation.methods import METHODS, Choice, Task
from kolm_build.steps.quantisation.params import QuantiseParams
from kolm_build.steps.quantisation.report import report
from kolm_build.steps.quantisation.rounded_model import RoundedModel, Rounding

REPORT = "quantisation.json"


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run, within=applied_as)


def run(request: StepRequest, events: Events) -> None:
    """Write the model of input `model`, quantised, and the report of what it cost."""
    params = QuantiseParams.parse(request.params)
    source = plain_model(request)
    config, weights = read_config(source), read_weights(source / WEIGHTS)
    check_weights(weights)
    chosen = choose(layers_of(config, weights), params)
    task = Task(
        model=source,
        grids=chosen.grids(),
        scale_dtype=scale_dtype(weights, chosen),
        params=params,
        calibration=input_folder(request, "calibration") if params.is_calibrated else None,
        events=events,
    )
    choice = METHODS[params.method](task)
    rounded = round_model(weights, chosen, choice, task)
    out = output_folder(request)
    write_weights(out / WEIGHTS, rounded.weights, events.bytes_progress)
    copy_others(source, out, but=WEIGHTS)
    write_json(out / CONFIG, {**config, KEY: to_config(chosen.described())})
    told = report(
        params,
        chosen,
        rounded.costs,
        choice.losses,
        tensor_bytes=sum(map(size_bytes, rounded.weights)),
        parameters=sum(prod(weight.shape) for weight in weights),
    )
    write_json(output_folder(request, "report") / REPORT, told)


def round_model(
    weights: Sequence[Weight], chosen: Chosen, choice: Choice, task: Task
) -> RoundedModel:
    """The tensors `weights` as they are written, and what each matrix cost."""
    return Rounding(
        weights=weights,
        chosen=chosen,
        choice=choice,
        scale_dtype=task.scale_dtype,
        events=task.events,
    ).rounded()


def check_weights(weights: Sequence[Weight]) -> None:
    """Refuse a model that holds NaN or infinity, before anything is computed.

    Raises:
        InvalidRecordError: It does; the tensor is named.
    """
    for weight in weights:
        try:
            check_finite(weight.read(), weight.dtype, weight.name)
        except InvalidRecordError as error:
            raise error.in_file(WEIGHTS) from None


def scale_dtype(weights: Sequence[Weight], chosen: Chosen) -> torch.dtype:
    """What a plain scale is stored in: the dtype of the matrices (QUANT-4).

    Raises:
        InvalidRecordError: They have more than one.
    """
    tensors = {one.layer.tensor for one in chosen.targets.values()}
    found = sorted({weight.dtype for weight in weights if weight.name in tensors})
    if len(found) != 1:
        raise InvalidRecordError(
            "matrices of several dtypes", file=WEIGHTS, expected="one", actual=", ".join(found)
        )
    return DTYPES[found[0]]
