"""AdamW over some of the layers at a time: the others' gradients are put away before a step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from kolm_build.errors import InvalidRecordError
from kolm_build.steps._training_params import TrainingParams
from kolm_build.steps.optimisers._count import Counter
from kolm_build.steps.optimisers._groups import BETAS, EPSILON, groups, layers_of, trained
from kolm_build.steps.optimisers._optimiser import Optimiser


class BlockAdamW(torch.optim.AdamW):
    """Torch's AdamW whose steps leave some parameters as they are.

    Args:
        grouped: The parameters in groups.
        rate: The rate.
        frozen: The parameters that the step of a number, from 0, leaves.
        forgets: Whether a parameter's moments are dropped when it is left.
    """

    def __init__(
        self,
        grouped: list[dict[str, Any]],
        rate: float,
        *,
        frozen: Callable[[int], Sequence[torch.nn.Parameter]],
        forgets: bool,
    ) -> None:
        super().__init__(grouped, lr=rate, betas=BETAS, eps=EPSILON, fused=True)
        self._frozen = frozen
        self._forgets = forgets
        self.done = 0

    def step(self, closure: Any = None) -> Any:
        """One step; a parameter without a gradient stays."""
        for one in self._frozen(self.done):
            one.grad = None
            if self._forgets:
                self.state.pop(one, None)
        self.done += 1
        return super().step(closure)


class Blocks(Optimiser):
    """AdamW that trains some layers for `interval` steps, then others.

    Args:
        interval: Optimiser steps of a period.
    """

    forgets = False
    outside = True
    """Whether what lies outside the layers is trained all the time, or never."""

    def __init__(self, interval: int) -> None:
        self.interval = interval

    @abstractmethod
    def active(self, period: int, layers: Sequence[int], seed: int) -> frozenset[int]:
        """The layers that are trained in `period`, from 0, of those numbered `layers`."""

    def make(self, network: Any, training: TrainingParams) -> torch.optim.Optimizer:
        """AdamW over what is trained; the layers are those of its names.

        Raises:
            InvalidRecordError: Nothing that is trained belongs to a layer.
        """
        named = trained(network)
        layers, seed = layers_of(named), torch.initial_seed()
        if not layers:
            raise InvalidRecordError("no layer is trained", where="optimiser")
        inside = {id(one) for parameters in layers.values() for one in parameters}
        rest = [one for _, one in named if id(one) not in inside and not self.outside]

        def frozen(step: int) -> list[torch.nn.Parameter]:
            active = self.active(step // self.interval, list(layers), seed)
            return rest + [one for at in layers if at not in active for one in layers[at]]

        grouped = groups(named, training, lambda _name: 1.0)
        self._made = BlockAdamW(
            grouped, training.learning_rate, frozen=frozen, forgets=self.forgets
        )
        return self._made

    def watchers(self) -> Sequence[TrainerCallback]:
        """What counts the steps."""
        return (Counter(self._made),)
