"""``teacher-logits``: a teacher reads rows once, and what it expects is kept (DIST-80 to DIST-85).

Its output is an input of every student that learns from it, so the teacher runs once for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.core.request import StepRequest
from kolm_build.numerics.apply import applied_as
from kolm_build.runtime.loading import load
from kolm_build.steps._bounds import count, decimal
from kolm_build.steps._conversations import read_conversations
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import input_folder, output_folder
from kolm_build.steps._sequences import Tokeniser, answer_logits
from kolm_build.steps._teacher_logits import Head, Likeliest, Row, Writer, digest_of_vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsParams:
    """What a recipe says of it.

    Attributes:
        text: The temperature as the recipe has it.
        temperature: The teacher's logits are divided by it.
        top_k: Tokens that are kept at each place.
    """

    text: str
    temperature: float
    top_k: int

    @classmethod
    def parse(cls, params: object) -> Self:
        """The parameters in a derivation, strict."""
        fields = Fields(params)
        made = cls(
            text=Fields(params).text("temperature", default="2"),
            temperature=decimal(fields, "temperature", "2", least=0.01, most=100.0),
            top_k=count(fields, "teacher_top_k", 64),
        )
        fields.done()
        return made


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run, within=applied_as)


def run(request: StepRequest, events: Events) -> None:
    """Write what the model of input `model` expects at each answer token of `train`, in float32."""
    params = LogitsParams.parse(request.params)
    rows = read_conversations(input_folder(request, "train") / "train.jsonl")
    model = load(input_folder(request, "model"), dtype=torch.float32)
    tokens = Tokeniser(model=model, max_length=model.window)
    head = Head(
        temperature=params.text,
        top_k=params.top_k,
        words=int(model.network.config.vocab_size),
        vocabulary=digest_of_vocabulary(model),
    )
    writer = Writer(head, output_folder(request), Path(request.scratch))
    for at, row in enumerate(rows, start=1):
        sequence = tokens.sequence(row.messages, row.answer, f"row {at} ({row.id})")
        with torch.no_grad():
            logits, _ = answer_logits(model.network, sequence)
            kept = Likeliest.of(logits, temperature=params.temperature, top_k=params.top_k)
        writer.add(Row.of(row.id, sequence), kept)
        events.progress(at, len(rows), unit="row")
    writer.done()
