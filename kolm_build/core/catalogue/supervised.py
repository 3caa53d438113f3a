"""Supervised fine-tuning."""

from __future__ import annotations

from kolm_build.core.catalogue.algorithm import Algorithm

ROWS: tuple[Algorithm, ...] = (
    Algorithm(
        id="sft",
        family="supervised",
        title="Supervised fine-tuning on answers",
        paper="arXiv:2203.02155, section 3.5",
        minimises="-(1/T) sum over answer tokens of log p(token | what is before it)",
        schema="answers",
        step="sft",
        backing="trl.SFTTrainer (loop), kolm_build.steps.sft (loss)",
        oracle="trl.SFTTrainer",
        passes="1 forward, 1 backward",
    ),
)
