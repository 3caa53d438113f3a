"""``combine``: several models become one, tensor by tensor (spec/algorithms-merging.md).

A tensor's members are read when a method asks for them, computed with in float32 and rounded once
to the dtype of the base. All other files are the base's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import torch
from blake3 import blake3

from kolm_build.core.fields import Fields
from kolm_build.core.request import StepRequest
from kolm_build.errors import InvalidRecordError, KolmError
from kolm_build.numerics.apply import applied_as
from kolm_build.numerics.state import payload
from kolm_build.runtime.weights import DTYPES
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import copy_others, output_folder
from kolm_build.steps._model_tree import WEIGHTS
from kolm_build.steps._tensors import tensor_of
from kolm_build.steps._weights import Weight, check_finite, write_weights
from kolm_build.steps._without_adapter import plain_model
from kolm_build.steps.merging.agreement import ModelTree, check_alike
from kolm_build.steps.merging.breadcrumbs import Breadcrumbs
from kolm_build.steps.merging.dare import Dare
from kolm_build.steps.merging.della import Della
from kolm_build.steps.merging.group import Group, Member, Method, in_canonical_order
from kolm_build.steps.merging.model_stock import ModelStock
from kolm_build.steps.merging.slerp import Slerp
from kolm_build.steps.merging.soup import Soup
from kolm_build.steps.merging.task_arithmetic import TaskArithmetic
from kolm_build.steps.merging.ties import Ties

BASE, MODELS = "model", "models"

METHODS: Mapping[str, Callable[[Fields, int], Method]] = {
    "breadcrumbs": Breadcrumbs.linear,
    "breadcrumbs-ties": Breadcrumbs.ties,
    "dare-linear": Dare.linear,
    "dare-ties": Dare.ties,
    "della": Della.elected,
    "della-linear": Della.linear,
    "model-stock": ModelStock.parse,
    "slerp": Slerp.parse,
    "soup": Soup.parse,
    "task-arithmetic": TaskArithmetic.parse,
    "ties": Ties.parse,
}
"""How each algorithm reads its parameters, by its name in the catalogue."""


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run, within=applied_as)


def run(request: StepRequest, events: Events) -> None:
    """Write the model that the inputs `models-1`, `models-2`, … make with the base `model`."""
    roles = model_roles(request.inputs)
    method = parse_method(request.params, len(roles))
    base = ModelTree.open(BASE, plain_model(request, BASE))
    models = [ModelTree.open(role, plain_model(request, role)) for role in roles]
    check_alike(base, models)
    out = output_folder(request, "model")
    weights = combined(base, models, method, seed=request.numerics.seed)
    _write(out / WEIGHTS, weights, events.bytes_progress)
    copy_others(base.folder, out, but=WEIGHTS)


def model_roles(inputs: Mapping[str, str]) -> tuple[str, ...]:
    """The inputs `models-1` to `models-N`, in the order of their numbers.

    Raises:
        InvalidRecordError: There is an input that is none of them, nor the base.
    """
    roles = [f"{MODELS}-{number}" for number in range(1, len(inputs))]
    if set(inputs) != {BASE, *roles}:
        raise InvalidRecordError(
            "not the inputs of a merge",
            where="inputs",
            expected=f"{BASE}, and {MODELS}-1, {MODELS}-2, … without a gap",
            actual=", ".join(sorted(inputs)) or "no input",
        )
    return tuple(roles)


def parse_method(params: Mapping[str, str | int], models: int) -> Method:
    """The method that the parameters name, for `models` models.

    Raises:
        InvalidRecordError: There is no such algorithm, or a parameter is unknown or out of range.
    """
    fields = Fields(params)
    name = fields.text("algorithm")
    if name not in METHODS:
        raise InvalidRecordError(
            "unknown algorithm", where="algorithm", expected=", ".join(METHODS), actual=repr(name)
        )
    method = METHODS[name](fields, models)
    fields.done()
    return method


def combined(
    base: ModelTree, models: Sequence[ModelTree], method: Method, *, seed: int
) -> Iterator[Weight]:
    """The merged weights, each computed when it is written; all are like the base's."""
    for name, weight in base.weights.items():
        yield replace(weight, read=_merged(name, base, models, method, seed))


def _merged(
    name: str, base: ModelTree, models: Sequence[ModelTree], method: Method, seed: int
) -> Callable[[], memoryview]:
    def read() -> memoryview:
        weights = zip(models, method.weights, strict=True)
        group = Group(
            name=name,
            base=lambda: _read(base, name),
            members=in_canonical_order(_member(model, name, weight) for model, weight in weights),
            seed=seed,
        )
        return payload(method.merge(group).to(DTYPES[base.weights[name].dtype]))

    return read


def _member(model: ModelTree, name: str, weight: Fraction) -> Member:
    return Member(
        read=lambda: _read(model, name),
        weight=weight,
        digest=blake3(model.weights[name].read()).digest(),
    )


def _read(model: ModelTree, name: str) -> torch.Tensor:
    """The tensor `name` of `model` in float32, a copy.

    Raises:
        InvalidRecordError: It has a value that is not finite.
    """
    weight = model.weights[name]
    try:
        check_finite(weight.read(), weight.dtype, name)
    except InvalidRecordError as error:
        raise error.in_file(f"{model.role}/{WEIGHTS}") from None
    return tensor_of(weight).float()


def _write(path: Path, weights: Iterator[Weight], on_bytes: Callable[[int, int], None]) -> None:
    """Write `weights` to `path`, or nothing."""
    try:
        write_weights(path, weights, on_bytes)
    except KolmError:
        path.unlink(missing_ok=True)
        raise
