"""The methods there are: how each chooses the codes of a model's linear layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from kolm_build.core.quantisation import Grid
from kolm_build.errors import UsageError
from kolm_build.numerics.quantised import Quantised
from kolm_build.runtime.loading import load
from kolm_build.steps._entry import Events
from kolm_build.steps.quantisation import awq, gptq, observing, smoothquant
from kolm_build.steps.quantisation.calibration import Progress, Tokens, sequences_of
from kolm_build.steps.quantisation.params import QuantiseParams
from kolm_build.steps.quantisation.rounding import Grids


class Loss(Protocol):
    """Squared errors of a layer's outputs over what it was calibrated with."""

    @property
    def nearest(self) -> float:
        """Of the layer's weights rounded to nearest."""

    @property
    def chosen(self) -> float:
        """Of the weights that the method chose."""

    @property
    def signal(self) -> float:
        """The squared outputs themselves."""


class Choice(Protocol):
    """What a method chose; a layer that it says nothing of is rounded to nearest."""

    @property
    def quantised(self) -> Mapping[str, Quantised]:
        """Layer to matrix."""

    @property
    def changed(self) -> Mapping[str, torch.Tensor]:
        """Tensors of the model that changed with them, by name, in their stored dtype."""

    @property
    def inputs(self) -> Mapping[str, float]:
        """Layer to the largest magnitude of what it reads."""

    @property
    def losses(self) -> Mapping[str, Loss]:
        """Layer to its errors."""

    def scaled(self, layer: str, weight: torch.Tensor) -> torch.Tensor:
        """The model's own `weight` of `layer`, float32, with the scales that were folded in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """The choice of a method that looks at no data: everything is rounded to nearest."""

    quantised: Mapping[str, Quantised] = field(default_factory=dict)
    changed: Mapping[str, torch.Tensor] = field(default_factory=dict)
    inputs: Mapping[str, float] = field(default_factory=dict)
    losses: Mapping[str, Loss] = field(default_factory=dict)

    def scaled(self, _layer: str, weight: torch.Tensor) -> torch.Tensor:
        """`weight`: nothing was folded in."""
        return weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a method is asked.

    Attributes:
        model: The model's folder.
        grids: The grid of each linear layer that is rounded, by the layer's name.
        scale_dtype: What a scale of integers or E4M3 is stored in.
        params: What the recipe says.
        calibration: The folder of calibration rows; None where nothing is calibrated.
        events: Is told how far it is.
    """

    model: Path
    grids: Mapping[str, Grid]
    scale_dtype: torch.dtype
    params: QuantiseParams
    calibration: Path | None
    events: Events


Method = Callable[[Task], Choice]


def round_to_nearest(task: Task) -> Choice:
    """Nothing is chosen beforehand but, where the scheme has them, the ranges of activations."""
    if not task.params.is_calibrated:
        return Nothing()
    return _calibrated(task, observing.quantise)


def _gptq(task: Task) -> Choice:
    params = task.params
    settings = gptq.Settings(damping=params.damping, act_order=params.act_order)
    return _calibrated(task, partial(gptq.quantise, settings=settings))


def _awq(task: Task) -> Choice:
    return _calibrated(task, partial(awq.quantise, powers=task.params.grid))


def _smoothquant(task: Task) -> Choice:
    return _calibrated(task, partial(smoothquant.quantise, strength=task.params.strength))


class _Quantise(Protocol):
    """A method whose own settings are given."""

    def __call__(
        self,
        network: Any,
        sequences: Sequence[Tokens],
        grids: Grids,
        *,
        on_block: Progress | None,
    ) -> Choice:
        """See the methods."""


def _calibrated(task: Task, quantise: _Quantise) -> Choice:
    """What `quantise` chooses for the model and the rows that `task` names.

    Raises:
        UsageError: There are no calibration rows.
    """
    if task.calibration is None:
        raise UsageError("this method needs rows to calibrate with", where="calibration")
    model = load(task.model)
    rows, length = task.params.calibration_rows, task.params.calibration_length
    sequences = sequences_of(model, task.calibration, rows=rows, length=length)
    tokens = sum(map(len, sequences))
    task.events.log(f"calibrating with {tokens} tokens of {len(sequences)} rows")
    grids = Grids(
        by_layer=task.grids, scale_dtype=task.scale_dtype, model_dtype=model.network.dtype
    )
    return quantise(
        model.network,
        sequences,
        grids,
        on_block=lambda done, total: task.events.progress(done, total, unit="layer"),
    )


METHODS: Mapping[str, Method] = {
    "awq": _awq,
    "gptq": _gptq,
    "rtn": round_to_nearest,
    "smoothquant": _smoothquant,
}
"""How each method chooses, by its name in a recipe."""
