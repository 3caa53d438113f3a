"""The parameters of the steps that compute, parsed strictly (spec/sft.md, spec/evaluation.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from kolm_build.core.decimals import parse_decimal
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError

ALL_LINEAR = "all-linear"
SCHEDULES = ("constant", "cosine", "linear")
DTYPES = ("bf16", "fp32")
METRICS = ("exact", "label")

Params = Mapping[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SftParams:
    """What a recipe may say of supervised fine-tuning with LoRA.

    Attributes:
        learning_rate: Peak rate of AdamW.
        epochs: Passes over the rows.
        max_steps: Most optimiser steps; 0 for all that `epochs` gives.
        batch_size: Rows of a forward pass.
        gradient_accumulation: Forward passes of an optimiser step.
        max_length: Most tokens of a row, answer included; a longer one is an error.
        warmup_steps: Steps in which the rate rises to its peak.
        schedule: How it falls after that.
        weight_decay: AdamW's decoupled decay.
        max_grad_norm: Gradients are scaled down to this norm; 0 for never.
        lora_r: Rank of the adapters.
        lora_alpha: They are scaled by `lora_alpha` over `lora_r`.
        lora_dropout: Share of an adapter's inputs that is dropped in training.
        target_modules: Names of the linear layers to adapt; empty for every one of them.
        adapter_dtype: How the adapters are stored; they are trained in float32.
        compute_dtype: What the frozen base is computed in.
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
    lora_r: int
    lora_alpha: int
    lora_dropout: float
    target_modules: tuple[str, ...]
    adapter_dtype: str
    compute_dtype: str

    @classmethod
    def parse(cls, params: Params) -> Self:
        """The parameters in `params`; what is left out has the value given here.

        Raises:
            InvalidRecordError: A key is unknown, or a value out of range or of another type.
        """
        fields = Fields(params)
        parsed = cls(
            learning_rate=_decimal(fields, "learning_rate", "2e-4", least=0.0, most=1.0),
            epochs=_count(fields, "epochs", 1),
            max_steps=_count(fields, "max_steps", 0, least=0),
            batch_size=_count(fields, "batch_size", 8),
            gradient_accumulation=_count(fields, "gradient_accumulation", 1),
            max_length=_count(fields, "max_length", 1024),
            warmup_steps=_count(fields, "warmup_steps", 0, least=0),
            schedule=_choice(fields, "schedule", "linear", SCHEDULES),
            weight_decay=_decimal(fields, "weight_decay", "0", least=0.0, most=1.0),
            max_grad_norm=_decimal(fields, "max_grad_norm", "1", least=0.0, most=1e6),
            lora_r=_count(fields, "lora_r", 16),
            lora_alpha=_count(fields, "lora_alpha", 32),
            lora_dropout=_decimal(fields, "lora_dropout", "0", least=0.0, most=0.99),
            target_modules=_modules(fields),
            adapter_dtype=_choice(fields, "adapter_dtype", "fp32", DTYPES),
            compute_dtype=_choice(fields, "compute_dtype", "bf16", DTYPES),
        )
        fields.done()
        return parsed


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateParams:
    """What a recipe may say of an evaluation.

    Attributes:
        max_new_tokens: Most tokens of an answer.
        batch_size: Most prompts that are read at once.
        labels: The answers there are, where it is a closed set; empty where not.
        verifier: Which outputs are acceptable, as `Verifier.parse` reads it.
        metric: ``exact`` (the text generated) or ``label`` (the likeliest label).
    """

    max_new_tokens: int
    batch_size: int
    labels: tuple[str, ...]
    verifier: str
    metric: str

    @classmethod
    def parse(cls, params: Params) -> Self:
        """The parameters in `params`; what is left out has the value given here.

        Raises:
            InvalidRecordError: A key is unknown, or a value out of range or of another type.
        """
        fields = Fields(params)
        parsed = cls(
            max_new_tokens=_count(fields, "max_new_tokens", 64),
            batch_size=_count(fields, "batch_size", 8),
            labels=_labels(fields),
            verifier=fields.text("verifier", default="none"),
            metric=_choice(fields, "metric", "exact", METRICS),
        )
        fields.done()
        if parsed.metric == "label" and not parsed.labels:
            raise InvalidRecordError("the metric 'label' needs labels", where="labels")
        return parsed


def _count(fields: Fields, name: str, default: int, *, least: int = 1) -> int:
    value = fields.integer(name, default=default)
    if not least <= value < 1 << 31:
        raise InvalidRecordError(
            "out of range", where=name, expected=f"{least} or more", actual=str(value)
        )
    return value


def _decimal(fields: Fields, name: str, default: str, *, least: float, most: float) -> float:
    text = fields.text(name, default=default)
    try:
        value = float(parse_decimal(text))
    except InvalidRecordError as error:
        raise error.under(name) from None
    if not least <= value <= most:
        raise InvalidRecordError(
            "out of range", where=name, expected=f"{least:g} to {most:g}", actual=text
        )
    return value


def _choice(fields: Fields, name: str, default: str, choices: tuple[str, ...]) -> str:
    value = fields.text(name, default=default)
    if value not in choices:
        raise InvalidRecordError(
            "unknown value", where=name, expected=" or ".join(choices), actual=repr(value)
        )
    return value


def _modules(fields: Fields) -> tuple[str, ...]:
    text = fields.text("target_modules", default=ALL_LINEAR)
    names = sorted({name.strip() for name in text.split(",")})
    if not all(names):
        raise InvalidRecordError(
            "an empty name", where="target_modules", expected="all-linear or q_proj,v_proj,..."
        )
    return () if names == [ALL_LINEAR] else tuple(names)


def _labels(fields: Fields) -> tuple[str, ...]:
    text = fields.text("labels", default="")
    labels = tuple(text.split("\n")) if text else ()
    if len(set(labels)) != len(labels) or any(
        label != label.strip() or not label for label in labels
    ):
        raise InvalidRecordError(
            "labels must differ and have no space around them", where="labels", actual=repr(text)
        )
    return labels


def check_none(params: Params) -> None:
    """Refuse any parameter: the step has none."""
    Fields(params).done()
