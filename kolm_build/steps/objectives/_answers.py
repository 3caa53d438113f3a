"""What objectives over answers share: rows, tokens, and a mean over the answers' tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset

from kolm_build.runtime.loading import Model
from kolm_build.steps._objective import Objective, ObjectiveTrainer, Share
from kolm_build.steps._sequences import Continuation, answer_logits
from kolm_build.steps._trainer import AnswerTrainer
from kolm_build.steps.sft import Answers


class AnswerObjective(Answers):
    """The mean over a step's answer tokens of a loss of each."""

    @abstractmethod
    def losses(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The loss of each token.

        Args:
            logits: Shape (tokens, vocabulary), float32.
            ids: The tokens, shape (tokens,).

        Returns:
            Shape (tokens,).
        """

    def share(self, network: Any, example: Continuation, context: int) -> Share:
        """The row's part of the mean."""
        logits, ids = answer_logits(network, example)
        return Share(loss=self.losses(logits, ids).sum() / context)

    def trainer(self, numerics_class: str) -> type[AnswerTrainer]:
        """The loss is this one in every class of numerics."""
        del numerics_class
        return ObjectiveTrainer

    def dataset(self, examples: Sequence[Continuation]) -> Dataset:
        """The rows' numbers."""
        return Objective.dataset(self, examples)

    def collator(self, model: Model) -> Any:
        """Of the rows' numbers."""
        return Objective.collator(self, model)


def negative_log_likelihoods(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """-log p of each token, shape (tokens,)."""
    return torch.nn.functional.cross_entropy(logits, ids, reduction="none")
