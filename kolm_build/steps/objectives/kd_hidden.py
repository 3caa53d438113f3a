"""``kd-hidden``: distillation of hidden states (arXiv:1412.6550, equation 3; arXiv:1909.10351)."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch.nn.functional import cross_entropy

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._objective import Share
from kolm_build.steps._sequences import Continuation
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._teaching import (
    TEACHER,
    TeachingObjective,
    take_hard_weight,
)


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class KdHidden(TeachingObjective):
    """The mean square difference of the last hidden states at the answers' tokens.

    No projection stands between the models, so both must have one hidden size: a student that
    has fewer layers, or narrower ones inside. There is no temperature.
    """

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(take_hard_weight(fields, "0.5"), temperature=1.0)

    def share(self, network: Any, example: Continuation, context: int) -> Share:
        """The row's part of the mean."""
        with torch.no_grad():
            taught, _ = states(self.teacher.network, example)
        ours, logits = states(network, example)
        if ours.shape != taught.shape:
            raise InvalidRecordError(
                "the teacher has another hidden size than the model",
                where=TEACHER,
                expected=str(ours.shape[-1]),
                actual=str(taught.shape[-1]),
                advice='Use algorithm = "minilm", which needs no equal sizes.',
            )
        distance = self.distance(ours, taught).sum() / context
        ids = torch.tensor(example.ids[example.start :])
        nll = cross_entropy(logits, ids, reduction="sum") / context
        loss = (1 - self.hard_weight) * distance + self.hard_weight * nll
        return Share(loss=loss, figures=(distance.detach(), nll.detach()))

    def distance(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Equation 3 without a regressor, over the hidden size, shape (tokens,)."""
        return ((student - teacher) ** 2).mean(dim=-1)


def states(network: Any, sequence: Continuation) -> tuple[torch.Tensor, torch.Tensor]:
    """The last hidden states and the logits that expect each answer token, float32."""
    ids = torch.tensor([sequence.ids])
    places = torch.arange(sequence.start - 1, len(sequence.ids) - 1)
    seen = network(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        logits_to_keep=places,
        output_hidden_states=True,
    )
    return seen.hidden_states[-1][0, places].float(), seen.logits[0].float()


TAKE: Take = KdHidden.take
