"""``texts``: continued pre-training on plain text (arXiv:2004.10964, section 3).

The mean negative log-likelihood of every token but a sequence's first, end tokens included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidDataError
from kolm_build.steps._bounds import choice
from kolm_build.steps._conversations import read_texts
from kolm_build.steps._given import Given
from kolm_build.steps._sequences import Continuation
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._answers import AnswerObjective, negative_log_likelihoods

NONE, BLOCKS = "none", "blocks"


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Texts(AnswerObjective):
    """The next token of plain text.

    Args:
        packing: ``none``: a row is a sequence. ``blocks``: the rows, one after another with the end
            token between, are cut into sequences of `max_length` tokens.
    """

    def __init__(self, packing: str) -> None:
        self.packing = packing

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(choice(fields, "packing", NONE, (NONE, BLOCKS)))

    def examples(self, given: Given) -> Sequence[Continuation]:
        """The rows' tokens, or the blocks of them."""
        tokens, rows = given.tokens, read_texts(given.rows())
        made = [tuple(tokens.model.chat.answer_ids(row.text)) for row in rows]
        if self.packing == BLOCKS:
            return packed(made, min(tokens.max_length, tokens.model.window))
        for number, (row, ids) in enumerate(zip(rows, made, strict=True), 1):
            tokens.check(len(ids), f"row {number} ({row.id})")
        return [Continuation(ids=ids, start=1) for ids in made]

    def losses(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Sft's."""
        return negative_log_likelihoods(logits, ids)


def packed(rows: Sequence[Sequence[int]], size: int) -> list[Continuation]:
    """The tokens of `rows` in blocks of `size`; one token alone, with nothing to tell, is left out.

    Raises:
        InvalidDataError: There is no block.
    """
    stream = [token for row in rows for token in row]
    blocks = [tuple(stream[at : at + size]) for at in range(0, len(stream), size)]
    made = [Continuation(ids=ids, start=1) for ids in blocks if len(ids) > 1]
    if not made:
        raise InvalidDataError(
            "no block has two tokens", file="train.jsonl", expected="max_length of 2 or more"
        )
    return made


TAKE: Take = Texts.take
