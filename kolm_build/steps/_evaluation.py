"""The two files of an evaluation: a result for each row, and their totals (spec/evaluation.md).

Needs the standard library alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from kolm_build.core import strict_json
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError

FORMAT = "evaluation/1"
RESULTS = "results.jsonl"
SUMMARY = "summary.json"


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
            **{field.name: getattr(self.totals, field.name) for field in fields(Totals)},
            **{name: getattr(self, name) for name in _FIGURES},
        }

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        source = Fields(value)
        found = source.text("format")
        if found != FORMAT:
            raise InvalidRecordError(
                "another format", where="format", expected=FORMAT, actual=repr(found)
            )
        made = cls(
            metric=source.text("metric"),
            totals=Totals(**{field.name: source.integer(field.name) for field in fields(Totals)}),
            **{name: source.integer(name) for name in _FIGURES},
        )
        source.done()
        return made


_FIGURES = ("parameters", "weight_bytes", "flops_per_request", "bytes_per_request")


def write_evaluation(out: Path, results: Iterable[Result], summary: Summary) -> None:
    """Write both files to the folder `out`."""
    lines = (strict_json.dumps(result.to_value()) + b"\n" for result in results)
    (out / RESULTS).write_bytes(b"".join(lines))
    (out / SUMMARY).write_bytes(strict_json.dumps(summary.to_value()))


def weight_bytes(folder: Path) -> int:
    """The size of the weights of the model in `folder`, as shipped."""
    return sum(path.stat().st_size for path in sorted(folder.glob("*.safetensors")))


def read_summary(folder: Path, role: str) -> Summary:
    """The summary of the evaluation in `folder`, the input `role`.

    Raises:
        InvalidRecordError: It is missing or bad.
    """
    return Summary.from_value(read_table(folder, SUMMARY, role))


def read_results(folder: Path, role: str) -> tuple[Result, ...]:
    """The results of the evaluation in `folder`, the input `role`.

    Raises:
        InvalidRecordError: A line is not a result; `where` is its number.
    """
    lines = _read(folder, RESULTS, role).splitlines()
    return tuple(_result(f"{role}/{RESULTS}", *numbered) for numbered in enumerate(lines, 1))


def read_table(folder: Path, name: str, role: str) -> Mapping[str, object]:
    """The JSON object in the file `name` of `folder`, the input `role`.

    Raises:
        InvalidRecordError: It is missing or not strict JSON.
    """
    try:
        value = strict_json.loads(_read(folder, name, role))
    except InvalidRecordError as error:
        raise error.in_file(f"{role}/{name}") from None
    if not isinstance(value, dict):
        raise InvalidRecordError("not a JSON object", file=f"{role}/{name}")
    return value


def _read(folder: Path, name: str, role: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise InvalidRecordError("no such file", file=f"{role}/{name}") from None


def _result(file: str, number: int, line: bytes) -> Result:
    try:
        return Result.from_value(strict_json.loads(line))
    except InvalidRecordError as error:
        raise error.under(f"row {number}").in_file(file) from None
