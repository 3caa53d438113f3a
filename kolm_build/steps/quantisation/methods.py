"""The methods there are: how each chooses the codes of a model's linear layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from kolm_build.core.quantisation import Grid
from kolm_build.errors import UsageError
from kolm_build.numerics.quantised import Quantised
from kolm_build.steps._entry import Events
from kolm_build.steps.quantisation.params import QuantiseParams


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """The choice of a method that looks at no data: everything is rounded to nearest."""

    quantised: Mapping[str, Quantised] = field(default_factory=dict)
    changed: Mapping[str, torch.Tensor] = field(default_factory=dict)
    inputs: Mapping[str, float] = field(default_factory=dict)
    losses: Mapping[str, Loss] = field(default_factory=dict)


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
    """Nothing is chosen beforehand.

    Raises:
        UsageError: The scheme needs scales of activations, which come from calibration.
    """
    if task.params.is_calibrated:
        raise UsageError(
            "this scheme needs calibrated activations, which are not built yet",
            where="scheme",
            actual=task.params.scheme.name,
        )
    return Nothing()


METHODS: Mapping[str, Method] = {"rtn": round_to_nearest}
"""How each method chooses, by its name in a recipe."""


def method_of(name: str) -> Method:
    """The method called `name`.

    Raises:
        UsageError: It is not built yet.
    """
    if name not in METHODS:
        raise UsageError(
            "a method of quantisation that is not built yet",
            where="method",
            expected=" or ".join(METHODS),
            actual=repr(name),
        )
    return METHODS[name]
