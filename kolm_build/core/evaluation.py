"""What an evaluation says: a result for each row, and their totals (spec/evaluation.md).

The steps write and read it, and whoever verifies an artifact reads it again. Needs the standard
library alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

from kolm_build.core.fields import Fields, shown
from kolm_build.core.kscore import Evidence
from kolm_build.errors import InvalidRecordError

FORMAT = "evaluation/1"
BUDGETS = (
    "size_budget_bytes",
    "latency_budget_us",
    "cost_budget_microusd",
    "device_flops_per_s",
    "device_bytes_per_s",
    "device_microusd_per_hour",
)
"""What a recipe says of an `Evidence`; the rest of it is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What is kept of one row: everything that its judgement follows from.

    Attributes:
        id: The row's id.
        answer: The answer that is right.
        output: What the model said, greedily.
        correct: Whether the row counts as right by the recipe's metric.
        label_output: The label the model finds likeliest; None without labels.
        label_correct: Whether that is the answer; None without labels.
        verified: Whether the verifier accepts `output`.
        prompt_tokens: Tokens the model read.
        output_tokens: Tokens it said, the end included.
    """

    id: str
    answer: str
    output: str
    correct: bool
    label_output: str | None
    label_correct: bool | None
    verified: bool
    prompt_tokens: int
    output_tokens: int

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        source = Fields(value)
        made = cls(
            id=source.text("id"),
            answer=source.text("answer"),
            output=source.text("output"),
            correct=source.flag("correct"),
            label_output=source.nullable("label_output", str),
            label_correct=source.nullable("label_correct", bool),
            verified=source.flag("verified"),
            prompt_tokens=source.integer("prompt_tokens"),
            output_tokens=source.integer("output_tokens"),
        )
        source.done()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What is counted over all results.

    Attributes:
        rows: How many there are.
        correct: Rows that are right by the recipe's metric.
        label_correct: Rows whose likeliest label is right; 0 without labels.
        verified: Rows whose output the verifier accepts.
        prompt_tokens: Tokens read.
        output_tokens: Tokens said.
    """

    rows: int
    correct: int
    label_correct: int
    verified: int
    prompt_tokens: int
    output_tokens: int

    @classmethod
    def of(cls, results: Sequence[Result]) -> Self:
        """The totals of `results`."""
        return cls(
            rows=len(results),
            correct=sum(result.correct for result in results),
            label_correct=sum(result.label_correct is True for result in results),
            verified=sum(result.verified for result in results),
            prompt_tokens=sum(result.prompt_tokens for result in results),
            output_tokens=sum(result.output_tokens for result in results),
        )

    def to_value(self) -> dict[str, int]:
        """The plain value."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """An evaluation's figures; all integers.

    Attributes:
        metric: ``exact`` or ``label``.
        totals: The totals of the results.
        parameters: The model's number of weights, tied ones once.
        weight_bytes: Size of its weights as shipped: of all its safetensors files.
        flops_per_request: Operations of a mean request.
        bytes_per_request: Bytes that a mean request reads and writes.
    """

    metric: str
    totals: Totals
    parameters: int
    weight_bytes: int
    flops_per_request: int
    bytes_per_request: int

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {
            "format": FORMAT,
            "metric": self.metric,
            **self.totals.to_value(),
            **{name: getattr(self, name) for name in _FIGURES},
        }

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        source = Fields(value)
        found = source.text("format")
        if found != FORMAT:
            raise InvalidRecordError(
                "another format", where="format", expected=FORMAT, actual=shown(found)
            )
        made = cls(
            metric=source.text("metric"),
            totals=Totals(**{field.name: source.integer(field.name) for field in fields(Totals)}),
            **{name: source.integer(name) for name in _FIGURES},
        )
        source.done()
        return made

    def to_evidence(self, base: Summary | None, budgets: Fields) -> Evidence:
        """What the K-score of this evaluation follows from.

        Args:
            base: The evaluation of the untuned base; None where there is none.
            budgets: Where the recipe's budgets are taken from.

        Raises:
            InvalidRecordError: A budget is missing, or a figure is out of range.
        """
        return Evidence(
            rows=self.totals.rows,
            correct=self.totals.correct,
            verified=self.totals.verified,
            base_correct=None if base is None else base.totals.correct,
            weight_bytes=self.weight_bytes,
            flops_per_request=self.flops_per_request,
            bytes_per_request=self.bytes_per_request,
            **{name: budgets.integer(name) for name in BUDGETS},
        )


_FIGURES = ("parameters", "weight_bytes", "flops_per_request", "bytes_per_request")
