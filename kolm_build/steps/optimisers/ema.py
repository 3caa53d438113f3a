"""``ema``: AdamW, and the result is the mean of the weights on the way.

The mean is exponential: m = d m + (1 - d) w after every step, begun at the first weights (Polyak
and Juditsky 1992; arXiv:1803.05407, section 3, for networks). What is trained does not see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from transformers import TrainerCallback

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import decimal
from kolm_build.steps._training_params import TrainingParams
from kolm_build.steps.optimisers._groups import trained
from kolm_build.steps.optimisers._optimiser import Optimiser

MEAN = "mean"
"""The mean of a parameter, in the optimiser's state."""


class Ema(Optimiser):
    """AdamW with a mean of its weights.

    Args:
        decay: The weight of the mean so far; 0 for the last weights.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The optimiser that `fields` describe."""
        return cls(decimal(fields, "ema_decay", "0.999", least=0.0, most=1.0))

    def make(self, network: Any, training: TrainingParams) -> torch.optim.Optimizer | None:
        """None: the trainer makes AdamW."""
        del network, training
        return None

    def watchers(self) -> Sequence[TrainerCallback]:
        """What keeps the mean."""
        return (Averager(self.decay),)


class Averager(TrainerCallback):
    """Keeps the mean of what is trained, and puts it in place in the end.

    The means are part of the optimiser's state, under `MEAN`: they are in the trace, and a training
    that goes on from a checkpoint finds them.

    Args:
        decay: The weight of the mean so far.
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._first: dict[str, torch.Tensor] = {}

    def on_train_begin(
        self, _args: Any, _state: Any, _control: Any, model: Any, **_others: Any
    ) -> None:
        """Note the first weights."""
        self._first = {name: one.detach().clone() for name, one in trained(model)}

    def on_step_end(
        self, _args: Any, _state: Any, _control: Any, model: Any, optimizer: Any, **_others: Any
    ) -> None:
        """Take the weights of one optimiser step."""
        with torch.no_grad():
            for name, one in trained(model):
                kept = optimizer.state[one]
                if MEAN not in kept:
                    kept[MEAN] = self._first[name]
                kept[MEAN].lerp_(one, 1 - self._decay)

    def on_train_end(
        self, _args: Any, state: Any, _control: Any, model: Any, optimizer: Any, **_others: Any
    ) -> None:
        """The mean is the result, unless the training is put aside before its end."""
        if state.global_step == state.max_steps:
            with torch.no_grad():
                for _, one in trained(model):
                    one.copy_(optimizer.state[one][MEAN])
