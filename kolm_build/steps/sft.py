"""``sft``: supervised fine-tuning on the answers of the train rows (spec/sft.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from datasets import Dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from kolm_build.core.fields import Fields
from kolm_build.runtime.loading import Model
from kolm_build.steps._answers import AnswerMean
from kolm_build.steps._conversations import Conversation, read_conversations
from kolm_build.steps._given import Given
from kolm_build.steps._objective import ObjectiveTrainer, Share
from kolm_build.steps._sequences import Continuation, Tokeniser, answer_logits
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps._trainer import ROWS, AnswerTrainer, NumberedCollator


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Answers(AnswerMean):
    """The mean negative log-likelihood of the answers' tokens (SFT-3)."""

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """It has no parameters of its own."""
        del fields
        return cls()

    def examples(self, given: Given) -> Sequence[Continuation]:
        """Prompt and answer of every row."""
        return tokenise(given.tokens, read_conversations(given.rows()))

    def share(self, network: Any, example: Continuation, context: int) -> Share:
        """The row's part of the mean."""
        logits, ids = answer_logits(network, example)
        total = torch.nn.functional.cross_entropy(logits, ids, reduction="sum")
        return Share(loss=total / context)

    def trainer(self, numerics_class: str) -> type[AnswerTrainer]:
        """Off the portable class rows are padded and run in batches, which is faster there."""
        return ObjectiveTrainer if numerics_class == "portable-1" else AnswerTrainer

    def dataset(self, examples: Sequence[Continuation]) -> Dataset:
        """Tokens and numbers of the rows: either trainer finds what it needs."""
        numbers = list(range(1, len(examples) + 1))
        return Dataset.from_dict({**self.columns(examples), ROWS: numbers})

    def collator(self, model: Model) -> Any:
        """TRL's collator, with the rows' numbers kept."""
        return NumberedCollator(DataCollatorForLanguageModeling(pad_token_id=model.chat.end_id))


def tokenise(tokens: Tokeniser, rows: Sequence[Conversation]) -> list[Continuation]:
    """The rows as token ids: the prompt's tokens have no loss, the answer's have (SFT-2).

    Raises:
        InvalidDataError: A row has too many tokens.
    """
    return [
        tokens.sequence(row.messages, row.answer, f"row {number} ({row.id})")
        for number, row in enumerate(rows, 1)
    ]


TAKE: Take = Answers.take
