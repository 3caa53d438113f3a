"""Objectives over a prompt and an answer a row: what is traced of them, and what a mean is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from kolm_build.steps._objective import Moment, Objective
from kolm_build.steps._sequences import Continuation

C = TypeVar("C")


class AnswerRows(Objective[Continuation, C]):
    """Rows of a prompt and an answer; what is made of them is another's to say."""

    def columns(self, examples: Sequence[Continuation]) -> Mapping[str, Sequence[Sequence[int]]]:
        """Token ids, and as labels those of the answers."""
        return {
            "input_ids": [list(one.ids) for one in examples],
            "labels": [one.labels for one in examples],
        }


class AnswerMean(AnswerRows[int]):
    """A mean over the answers' tokens of an optimiser step; a row is told how many those are."""

    asks_network = False

    def prepare(
        self, network: Any, examples: Sequence[Continuation], moment: Moment
    ) -> Sequence[int]:
        """The number of tokens with a loss, for each row that of the whole step."""
        del network, moment
        return [sum(one.tokens for one in examples)] * len(examples)
