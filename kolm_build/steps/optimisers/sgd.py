"""``sgd``: stochastic gradient descent with momentum; torch's fused kernel.

v = m v + g, w = w - rate v (Polyak 1964, as in torch); the decay is added to the gradient.
"""

from __future__ import annotations

from typing import Any, Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import decimal
from kolm_build.steps._training_params import TrainingParams
from kolm_build.steps.optimisers._groups import groups, trained
from kolm_build.steps.optimisers._optimiser import Optimiser


class Sgd(Optimiser):
    """Gradient descent.

    Args:
        momentum: Share of the last change that stays.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The optimiser that `fields` describe."""
        return cls(decimal(fields, "sgd_momentum", "0.9", least=0.0, most=1.0))

    def make(self, network: Any, training: TrainingParams) -> torch.optim.Optimizer:
        """Torch's, over the parameters that are trained."""
        grouped = groups(trained(network), training, lambda _name: 1.0)
        return torch.optim.SGD(
            grouped, lr=training.learning_rate, momentum=self.momentum, fused=True
        )
