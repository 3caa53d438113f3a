"""What every optimiser can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from kolm_build.steps._training_params import TrainingParams


class Optimiser(ABC):
    """How gradients become changes."""

    @abstractmethod
    def make(self, network: Any, training: TrainingParams) -> torch.optim.Optimizer | None:
        """The optimiser of what `network` trains; None for TRL's own, AdamW."""

    def watchers(self) -> Sequence[TrainerCallback]:
        """Callbacks that go with it, told before the trace is."""
        return ()
