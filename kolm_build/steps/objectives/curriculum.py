"""``curriculum``: sft with the rows in order of difficulty (Bengio et al. 2009; arXiv:1904.03626).

A row's difficulty is the model's own loss of it before anything is trained, then its length, then
its digest: a function of model and rows, so there is one order, and every epoch has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import choice
from kolm_build.steps._conversations import read_conversations
from kolm_build.steps._given import Given
from kolm_build.steps._sequences import Continuation, log_probability
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._answers import AnswerObjective, negative_log_likelihoods
from kolm_build.steps.sft import tokenise

ORDERS = ("easy-first", "hard-first")


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Curriculum(AnswerObjective):
    """The negative log-likelihood over rows in a fixed order.

    Args:
        first: Which rows come first.
    """

    def __init__(self, first: str) -> None:
        self.first = first
        self._ids: Sequence[str] = ()
        self._order: Sequence[int] = ()

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(choice(fields, "curriculum", ORDERS[0], ORDERS))

    def examples(self, given: Given) -> Sequence[Continuation]:
        """Prompt and answer of every row; their digests are noted."""
        rows = read_conversations(given.rows())
        self._ids = [row.id for row in rows]
        return tokenise(given.tokens, rows)

    def start(self, network: Any, examples: Sequence[Continuation]) -> None:
        """Order the rows by difficulty (ADPT-84)."""
        network.eval()
        with torch.no_grad():
            losses = [-float(log_probability(network, one)) / one.tokens for one in examples]
        keys = [
            (loss, len(one.ids), row)
            for loss, one, row in zip(losses, examples, self._ids, strict=True)
        ]
        self._order = sorted(
            range(len(keys)), key=lambda at: keys[at], reverse=self.first == ORDERS[1]
        )

    def order(self) -> Sequence[int] | None:
        """The rows' indices, as `start` found them."""
        return self._order

    def losses(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Sft's."""
        return negative_log_likelihoods(logits, ids)


TAKE: Take = Curriculum.take
