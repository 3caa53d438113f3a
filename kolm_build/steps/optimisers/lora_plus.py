"""``lora-plus``: B learns faster than A (arXiv:2402.12354).

AdamW whose rate for LoRA's B is `lora_plus_ratio` times that for everything else; 1 is AdamW.
"""

from __future__ import annotations

from typing import Any, Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._bounds import decimal
from kolm_build.steps._training_params import TrainingParams
from kolm_build.steps.optimisers._groups import adamw, groups, trained
from kolm_build.steps.optimisers._optimiser import Optimiser


class LoraPlus(Optimiser):
    """AdamW with a rate of its own for B.

    Args:
        ratio: The rate of B over that of A.
    """

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The optimiser that `fields` describe."""
        return cls(decimal(fields, "lora_plus_ratio", "16", least=0.0, most=10000.0))

    def make(self, network: Any, training: TrainingParams) -> torch.optim.Optimizer:
        """AdamW over two rates.

        Raises:
            InvalidRecordError: Nothing that is trained is a B.
        """
        named = trained(network)
        if not any("lora_B" in name for name, _ in named):
            raise InvalidRecordError(
                "lora-plus needs an adapter with a B",
                where="optimiser",
                expected="lora, or an adapter made of it",
            )
        return adamw(groups(named, training, self._rate), training)

    def _rate(self, name: str) -> float:
        return self.ratio if "lora_B" in name else 1.0
