"""Some of the weights themselves: the rest is frozen, and the result is a whole model (ADPT-60)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch

from kolm_build.errors import InvalidRecordError
from kolm_build.steps.adapters.full import Full


class Partial(Full):
    """The weights that `trains` names."""

    what: str
    """What is trained, for the error of a model without such."""

    @abstractmethod
    def trains(self, name: str, parameter: torch.Tensor, layers: int) -> bool:
        """Whether the parameter `name` of a model of so many layers is trained."""

    def attach(self, network: Any) -> Any:
        """`network` itself, all but the chosen weights frozen.

        Raises:
            InvalidRecordError: The model has no such weights.
        """
        made = super().attach(network)
        layers = network.config.get_text_config().num_hidden_layers
        chosen = 0
        for name, one in made.named_parameters():
            one.requires_grad_(self.trains(name, one, layers))
            chosen += one.requires_grad
        if not chosen:
            raise InvalidRecordError(
                f"the model has no {self.what}", where="adapter", actual=type(network).__name__
            )
        return made
