"""``adamw``: Adam with decoupled decay (arXiv:1711.05101, algorithm 2); torch's fused kernel."""

from __future__ import annotations

from typing import Any, Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._training_params import TrainingParams
from kolm_build.steps.optimisers._optimiser import Optimiser


class AdamW(Optimiser):
    """TRL's default, pinned in `_pinned.py`."""

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """It has no parameters of its own."""
        del fields
        return cls()

    def make(self, network: Any, training: TrainingParams) -> torch.optim.Optimizer | None:
        """None: the trainer makes it."""
        del network, training
        return None
