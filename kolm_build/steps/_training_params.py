"""The parameters that every stage which trains by gradients has, parsed strictly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import choice, count, decimal

SCHEDULES = ("constant", "cosine", "linear")
DTYPES = ("bf16", "fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingParams:
    """What a recipe may say of any training.

    Attributes:
        learning_rate: Peak rate of the optimiser.
        epochs: Passes over the rows.
        max_steps: Most optimiser steps; 0 for all that `epochs` gives.
        batch_size: Rows of a forward pass.
        gradient_accumulation: Forward passes of an optimiser step.
        max_length: Most tokens of a row, answer included; a longer one is an error.
        warmup_steps: Steps in which the rate rises to its peak.
        schedule: How it falls after that.
        weight_decay: The optimiser's decoupled decay.
        max_grad_norm: Gradients are scaled down to this norm; 0 for never.
        compute_dtype: What the base is computed in.
    """

    learning_rate: float
    epochs: int
    max_steps: int
    batch_size: int
    gradient_accumulation: int
    max_length: int
    warmup_steps: int
    schedule: str
    weight_decay: float
    max_grad_norm: float
    compute_dtype: str

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The parameters in `fields`; what is left out has the value given here.

        Raises:
            InvalidRecordError: A value is out of range or of another type.
        """
        return cls(
            learning_rate=decimal(fields, "learning_rate", "2e-4", least=0.0, most=1.0),
            epochs=count(fields, "epochs", 1),
            max_steps=count(fields, "max_steps", 0, least=0),
            batch_size=count(fields, "batch_size", 8),
            gradient_accumulation=count(fields, "gradient_accumulation", 1),
            max_length=count(fields, "max_length", 1024),
            warmup_steps=count(fields, "warmup_steps", 0, least=0),
            schedule=choice(fields, "schedule", "linear", SCHEDULES),
            weight_decay=decimal(fields, "weight_decay", "0", least=0.0, most=1.0),
            max_grad_norm=decimal(fields, "max_grad_norm", "1", least=0.0, most=1e6),
            compute_dtype=choice(fields, "compute_dtype", "bf16", DTYPES),
        )
