"""``prm``: a reward model of steps (arXiv:2305.20050, section 2.6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.nn.functional import logsigmoid

from kolm_build.core.fields import Fields
from kolm_build.steps._conversations import Stepwise, read_steps
from kolm_build.steps._given import Given
from kolm_build.steps._objective import Share
from kolm_build.steps._reward_head import PROCESS, step_ends
from kolm_build.steps._sequences import IGNORED
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._reward import RewardObjective


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsExample:
    """An answer in steps, as token ids.

    Attributes:
        ids: The prompt and the steps.
        ends: The index of each step's last token.
        labels: Whether each step is right.
    """

    ids: tuple[int, ...]
    ends: tuple[int, ...]
    labels: tuple[bool, ...]

    @property
    def marks(self) -> list[int]:
        """1 or 0 at each step's last token, as its label; `IGNORED` elsewhere."""
        marks = [IGNORED] * len(self.ids)
        for at, label in zip(self.ends, self.labels, strict=True):
            marks[at] = int(label)
        return marks


class ProcessReward(RewardObjective[StepsExample]):
    """The binary cross-entropy of a row's steps, their mean; the chance is sigmoid of the head."""

    kind = PROCESS
    figures = ("accuracy",)

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """It has no parameters of its own."""
        del fields
        return cls()

    def examples(self, given: Given) -> Sequence[StepsExample]:
        """The steps of every row."""
        return [
            _example(given, row, f"row {number} ({row.id})")
            for number, row in enumerate(read_steps(given.rows()), 1)
        ]

    def columns(self, examples: Sequence[StepsExample]) -> Mapping[str, Sequence[Sequence[int]]]:
        """Token ids, and the labels at the steps' ends."""
        return {
            "input_ids": [list(one.ids) for one in examples],
            "labels": [one.marks for one in examples],
        }

    def share(self, network: Any, example: StepsExample, context: int) -> Share:
        """The row's part of the mean."""
        found = self.numbers(network, example.ids, example.ends)
        right = (found.detach() > 0) == torch.tensor(example.labels)
        loss = step_loss(found, example.labels)
        return Share(loss=loss / context, figures=(right.float().mean(),))


def step_loss(found: torch.Tensor, labels: Sequence[bool]) -> torch.Tensor:
    """-log of the chance that each step is what its label says, the mean over the steps."""
    signs = torch.tensor([1.0 if label else -1.0 for label in labels])
    return -logsigmoid(signs * found).mean()


def _example(given: Given, row: Stepwise, where: str) -> StepsExample:
    chat = given.model.chat
    ids, ends = step_ends(chat, chat.prompt_ids(row.messages), row.steps)
    given.tokens.check(len(ids), where)
    return StepsExample(ids=tuple(ids), ends=tuple(ends), labels=row.labels)


TAKE: Take = ProcessReward.take
