"""``neftune``: sft with noise on the embeddings (arXiv:2310.05914, algorithm 1)."""

from __future__ import annotations

import math
from typing import Any, Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import decimal
from kolm_build.steps._objective import Share
from kolm_build.steps._sequences import Continuation
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._answers import AnswerObjective, negative_log_likelihoods


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Neftune(AnswerObjective):
    """The negative log-likelihood, the row's embeddings moved by uniform noise.

    Noise of a row of L tokens and d features lies within alpha / sqrt(L d). It comes from the row's
    own generator, so it is there in training alone.

    Args:
        alpha: How strong the noise is.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(decimal(fields, "neftune_alpha", "5", least=0.0, most=1000.0))

    def losses(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Sft's."""
        return negative_log_likelihoods(logits, ids)

    def share(self, network: Any, example: Continuation, context: int) -> Share:
        """The row's part of the mean, its embeddings noisy."""
        hook = network.get_input_embeddings().register_forward_hook(self._noisy)
        try:
            return super().share(network, example, context)
        finally:
            hook.remove()

    def _noisy(self, _module: Any, _inputs: Any, embeddings: torch.Tensor) -> torch.Tensor:
        """Algorithm 1, line 5."""
        most = self.alpha / math.sqrt(embeddings.shape[-2] * embeddings.shape[-1])
        noise = (2 * torch.rand(embeddings.shape) - 1) * most
        return (embeddings.float() + noise).to(embeddings.dtype)


TAKE: Take = Neftune.take
