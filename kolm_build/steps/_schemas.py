"""What a row becomes, by schema (spec/dataset.md): its prompt, its line, what must not be twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self
from unicodedata import normalize

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._cells import Cells, plain
from kolm_build.steps._template import Template


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What a row says.

    Attributes:
        prompt: The user's message; of a text the text.
        content: The values in it without the template's words: what leaks are sought in.
        turns: Whether the prompt is a message of a conversation.
        fields: What the line holds beside id, group and messages.
        subject: What may be there once: the prompt, and what is judged.
        verdict: What is said of it.
        counted: What the report counts; None for nothing.
    """

    prompt: str
    content: str
    turns: bool = True
    fields: Mapping[str, object]
    subject: object
    verdict: object
    counted: str | None = None


class Shape(Protocol):
    """How rows of one schema are made."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a row must have."""

    @property
    def twice(self) -> str:
        """What it is called when two rows have one subject and two verdicts."""

    def body(self, cells: Cells) -> Body:
        """What the row says.

        Raises:
            InvalidDataError: It cannot be used; the error names row and field.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """``answers``: a prompt, and the answer that is right."""

    prompt: Template
    answer: Template
    twice: str = "two answers to one prompt"

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The templates in `fields`."""
        return cls(prompt=_template(fields, "prompt"), answer=_template(fields, "answer"))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a row must have."""
        return (*self.prompt.columns, *self.answer.columns)

    def body(self, cells: Cells) -> Body:
        """What the row says."""
        content = cells.content("prompt", self.prompt)
        answer = cells.needed("answer", self.answer)
        prompt = cells.filled(self.prompt)
        return Body(
            prompt=prompt,
            content=content,
            fields={"answer": answer},
            subject=prompt,
            verdict=answer,
            counted=answer,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """``texts``: plain text."""

    text: Template
    twice: str = "a duplicate row"

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The template in `fields`."""
        return cls(text=_template(fields, "text"))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a row must have."""
        return self.text.columns

    def body(self, cells: Cells) -> Body:
        """What the row says."""
        content = cells.content("text", self.text)
        text = cells.filled(self.text)
        return Body(
            prompt=text,
            content=content,
            turns=False,
            fields={"text": text},
            subject=text,
            verdict=None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """``pairs``: two answers to a prompt, of which one is preferred."""

    prompt: Template
    chosen: Template
    rejected: Template
    margin: Template
    twice: str = "two votes on one pair"

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The templates in `fields`."""
        return cls(
            prompt=_template(fields, "prompt"),
            chosen=_template(fields, "chosen"),
            rejected=_template(fields, "rejected"),
            margin=_optional(fields, "margin", ""),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a row must have."""
        parts = (self.prompt, self.chosen, self.rejected, self.margin)
        return tuple(column for part in parts for column in part.columns)

    def body(self, cells: Cells) -> Body:
        """What the row says."""
        content = cells.content("prompt", self.prompt)
        chosen = cells.needed("chosen answer", self.chosen)
        rejected = cells.needed("rejected answer", self.rejected)
        if chosen == rejected:
            raise cells.error(
                "a pair of equal sides",
                field="rejected",
                expected="another answer than the chosen one",
                actual=repr(rejected),
            )
        prompt, margin = cells.filled(self.prompt), plain(cells.decimal("margin", self.margin))
        return Body(
            prompt=prompt,
            content=content,
            fields={"chosen": chosen, "rejected": rejected, "margin": margin},
            subject=(prompt, *sorted((chosen, rejected))),
            verdict=(chosen, margin),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """``feedback``: an answer to a prompt, and whether it is a good one."""

    prompt: Template
    answer: Template
    good: Template
    weight: Template
    twice: str = "two votes on one answer"

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The templates in `fields`."""
        return cls(
            prompt=_template(fields, "prompt"),
            answer=_template(fields, "answer"),
            good=_template(fields, "good"),
            weight=_optional(fields, "weight", "1"),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a row must have."""
        parts = (self.prompt, self.answer, self.good, self.weight)
        return tuple(column for part in parts for column in part.columns)

    def body(self, cells: Cells) -> Body:
        """What the row says."""
        content = cells.content("prompt", self.prompt)
        answer = cells.needed("answer", self.answer)
        good = cells.filled(self.good)
        weight = cells.decimal("weight", self.weight)
        if not weight:
            raise cells.error(
                "a weight that is not above 0", field="weight", actual=repr(plain(weight))
            )
        prompt = cells.filled(self.prompt)
        return Body(
            prompt=prompt,
            content=content,
            fields={
                "answer": answer,
                "good": cells.truth("good", good),
                "weight": plain(weight),
            },
            subject=(prompt, answer),
            verdict=(good, weight),
            counted=good,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """``prompts``: a prompt to answer, and what a reward needs to judge the answer."""

    prompt: Template
    reference: Template
    more: tuple[str, ...]
    twice: str = "two references for one prompt"

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The templates and columns in `fields`."""
        more = fields.text("fields", default="")
        return cls(
            prompt=_template(fields, "prompt"),
            reference=_optional(fields, "reference", ""),
            more=tuple(more.split("\n")) if more else (),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a row must have."""
        return (*self.prompt.columns, *self.reference.columns, *self.more)

    def body(self, cells: Cells) -> Body:
        """What the row says."""
        content = cells.content("prompt", self.prompt)
        prompt, reference = cells.filled(self.prompt), cells.filled(self.reference)
        columns = {name: cells.text(name) for name in self.more}
        return Body(
            prompt=prompt,
            content=content,
            fields={"reference": reference, "fields": columns},
            subject=prompt,
            verdict=(reference, *columns.values()),
            counted=reference or None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """``steps``: an answer to a prompt in steps, each right or wrong."""

    prompt: Template
    steps: str
    labels: str
    twice: str = "two judgements of one answer"

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The template and columns in `fields`."""
        return cls(
            prompt=_template(fields, "prompt"),
            steps=fields.text("steps"),
            labels=fields.text("labels"),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a row must have."""
        return (*self.prompt.columns, self.steps, self.labels)

    def body(self, cells: Cells) -> Body:
        """What the row says."""
        content = cells.content("prompt", self.prompt)
        prompt, steps = cells.filled(self.prompt), cells.texts(self.steps)
        if not steps:
            raise cells.error("no steps", field=f"column {self.steps!r}")
        for number, step in enumerate(steps, 1):
            if not step.strip():
                raise cells.error(f"step {number} is empty", field=f"column {self.steps!r}")
        return Body(
            prompt=prompt,
            content=content,
            fields={"steps": list(steps), "labels": self._labels(cells, len(steps))},
            subject=(prompt, steps),
            verdict=cells.texts(self.labels),
        )

    def _labels(self, cells: Cells, count: int) -> list[bool]:
        where = f"column {self.labels!r}"
        labels = [cells.truth(where, label) for label in cells.texts(self.labels)]
        if len(labels) != count:
            raise cells.error(
                "not one label for each step",
                field=where,
                expected=f"{count} labels",
                actual=f"{len(labels)} labels",
            )
        return labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Rationales:
    """``rationales``: a prompt, the answer that is right, and why it is."""

    prompt: Template
    answer: Template
    rationale: Template
    twice: str = "two answers to one prompt"

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The templates in `fields`."""
        return cls(
            prompt=_template(fields, "prompt"),
            answer=_template(fields, "answer"),
            rationale=_template(fields, "rationale"),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a row must have."""
        return (*self.prompt.columns, *self.answer.columns, *self.rationale.columns)

    def body(self, cells: Cells) -> Body:
        """What the row says."""
        content = cells.content("prompt", self.prompt)
        answer = cells.needed("answer", self.answer)
        rationale = cells.needed("rationale", self.rationale)
        prompt = cells.filled(self.prompt)
        return Body(
            prompt=prompt,
            content=content,
            fields={"answer": answer, "rationale": rationale},
            subject=prompt,
            verdict=(answer, rationale),
            counted=answer,
        )


SHAPES: Mapping[str, type[Answers | Texts | Pairs | Feedback | Prompts | Steps | Rationales]] = {
    "answers": Answers,
    "texts": Texts,
    "pairs": Pairs,
    "feedback": Feedback,
    "prompts": Prompts,
    "steps": Steps,
    "rationales": Rationales,
}


def _template(fields: Fields, name: str) -> Template:
    """The template under `name`, which names a column."""
    return fields.parsed(name, _with_columns)


def _with_columns(text: str) -> Template:
    template = _parsed(text)
    if not template.columns:
        raise InvalidRecordError(
            "the template names no column", expected="such as {text}", actual=repr(text)[:80]
        )
    return template


def _optional(fields: Fields, name: str, default: str) -> Template:
    """The template under `name`; `default` where there is none."""
    return fields.parsed(name, _parsed) if fields.has(name) else _parsed(default)


def _parsed(text: str) -> Template:
    return Template.parse(normalize("NFC", text))
