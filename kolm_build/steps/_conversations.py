"""Rows of data sets, as the steps that train and evaluate read them (spec/dataset.md).

One class for each schema. The `dataset` step wrote the lines; here each is read as strictly as
anything that crosses a process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from kolm_build.core import strict_json
from kolm_build.core.decimals import parse_decimal, render_decimal
from kolm_build.core.fields import Fields, shown
from kolm_build.errors import InvalidDataError, InvalidRecordError

T = TypeVar("T")

Messages = tuple[Mapping[str, str], ...]
"""Turns of a conversation, each ``{"role", "content"}``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A row: the turns of a conversation and the answer that is right.

    Attributes:
        id: The row's own digest, as text.
        messages: The turns before the answer.
        answer: The answer.
        group: What keeps families of rows on one side of the split; empty for none.
    """

    id: str
    messages: Messages
    answer: str
    group: str

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The row in `value`, strict."""
        fields = Fields(value)
        row = cls(
            id=fields.text("id"),
            messages=_messages(fields),
            answer=fields.text("answer"),
            group=fields.text("group"),
        )
        fields.done()
        return row


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A row of the schema ``texts``: plain text.

    Attributes:
        id: The row's own digest, as text.
        text: The text.
        group: What keeps families of rows on one side of the split; empty for none.
    """

    id: str
    text: str
    group: str

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The row in `value`, strict."""
        fields = Fields(value)
        row = cls(id=fields.text("id"), text=_written(fields, "text"), group=fields.text("group"))
        if fields.array("messages"):
            raise InvalidRecordError("a text has no turns", where="messages", expected="[]")
        fields.done()
        return row


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A row of the schema ``pairs``: two answers, of which one is preferred.

    Attributes:
        id: The row's own digest, as text.
        messages: The turns before the answer.
        chosen: The answer that is preferred.
        rejected: The other one.
        margin: By how much, a decimal number of 0 or more in plain form; empty where not given.
        group: What keeps families of rows on one side of the split; empty for none.
    """

    id: str
    messages: Messages
    chosen: str
    rejected: str
    margin: str
    group: str

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The row in `value`, strict."""
        fields = Fields(value)
        row = cls(
            id=fields.text("id"),
            messages=_messages(fields),
            chosen=_written(fields, "chosen"),
            rejected=_written(fields, "rejected"),
            margin=_decimal_or_nothing(fields, "margin"),
            group=fields.text("group"),
        )
        fields.done()
        if row.chosen == row.rejected:
            raise InvalidRecordError("a pair of equal sides", where="rejected")
        return row


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """A row of the schema ``feedback``: an answer, and whether it is a good one.

    Attributes:
        id: The row's own digest, as text.
        messages: The turns before the answer.
        answer: The answer.
        good: Whether it is wanted.
        weight: What the row counts, a decimal number above 0 in plain form.
        group: What keeps families of rows on one side of the split; empty for none.
    """

    id: str
    messages: Messages
    answer: str
    good: bool
    weight: str
    group: str

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The row in `value`, strict."""
        fields = Fields(value)
        row = cls(
            id=fields.text("id"),
            messages=_messages(fields),
            answer=_written(fields, "answer"),
            good=fields.flag("good"),
            weight=_decimal(fields, "weight"),
            group=fields.text("group"),
        )
        fields.done()
        if row.weight == "0":
            raise InvalidRecordError("a row that counts nothing", where="weight", expected="over 0")
        return row


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A row of the schema ``prompts``: a prompt to answer, and what a reward needs to judge.

    Attributes:
        id: The row's own digest, as text.
        messages: The turns before the answer.
        reference: The answer that is right; empty where there is none.
        fields: Further columns, for reward functions: name to text.
        group: What keeps families of rows on one side of the split; empty for none.
    """

    id: str
    messages: Messages
    reference: str
    fields: Mapping[str, str]
    group: str

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The row in `value`, strict."""
        fields = Fields(value)
        row = cls(
            id=fields.text("id"),
            messages=_messages(fields),
            reference=fields.text("reference"),
            fields=fields.record("fields", _columns),
            group=fields.text("group"),
        )
        fields.done()
        return row


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepwise:
    """A row of the schema ``steps``: an answer in steps, each right or wrong.

    Attributes:
        id: The row's own digest, as text.
        messages: The turns before the answer.
        steps: The steps of the answer, one or more.
        labels: Whether each of them is right.
        group: What keeps families of rows on one side of the split; empty for none.
    """

    id: str
    messages: Messages
    steps: tuple[str, ...]
    labels: tuple[bool, ...]
    group: str

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The row in `value`, strict."""
        fields = Fields(value)
        row = cls(
            id=fields.text("id"),
            messages=_messages(fields),
            steps=fields.records("steps", partial(_exactly, str)),
            labels=fields.records("labels", partial(_exactly, bool)),
            group=fields.text("group"),
        )
        fields.done()
        if not row.steps or not all(step.strip() for step in row.steps):
            raise InvalidRecordError("an empty step", where="steps")
        if len(row.labels) != len(row.steps):
            raise InvalidRecordError(
                "one label for each step",
                where="labels",
                expected=str(len(row.steps)),
                actual=str(len(row.labels)),
            )
        return row


@dataclass(frozen=True, slots=True, kw_only=True)
class Rationale:
    """A row of the schema ``rationales``: an answer, and why it is right.

    Attributes:
        id: The row's own digest, as text.
        messages: The turns before the answer, one or more.
        answer: The answer.
        rationale: Why.
        group: What keeps families of rows on one side of the split; empty for none.
    """

    id: str
    messages: Messages
    answer: str
    rationale: str
    group: str

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The row in `value`, strict."""
        fields = Fields(value)
        row = cls(
            id=fields.text("id"),
            messages=_messages(fields),
            answer=_written(fields, "answer"),
            rationale=_written(fields, "rationale"),
            group=fields.text("group"),
        )
        fields.done()
        if not row.messages:
            raise InvalidRecordError("no turns", where="messages", expected="a prompt")
        return row


def read_conversations(path: Path) -> tuple[Conversation, ...]:
    """The rows of the JSON lines file `path`.

    Raises:
        InvalidDataError: There is none.
        InvalidRecordError: A line is not a row; `where` is its number.
    """
    return _rows(path, Conversation.from_value)


def read_texts(path: Path) -> tuple[Text, ...]:
    """The rows of `path`, of the schema ``texts``; errors as `read_conversations` has them."""
    return _rows(path, Text.from_value)


def read_pairs(path: Path) -> tuple[Pair, ...]:
    """The rows of `path`, of the schema ``pairs``; errors as `read_conversations` has them."""
    return _rows(path, Pair.from_value)


def read_feedback(path: Path) -> tuple[Feedback, ...]:
    """The rows of `path`, of the schema ``feedback``; errors as `read_conversations` has them."""
    return _rows(path, Feedback.from_value)


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """The rows of `path`, of the schema ``prompts``; errors as `read_conversations` has them."""
    return _rows(path, Prompt.from_value)


def read_steps(path: Path) -> tuple[Stepwise, ...]:
    """The rows of `path`, of the schema ``steps``; errors as `read_conversations` has them."""
    return _rows(path, Stepwise.from_value)


def read_rationales(path: Path) -> tuple[Rationale, ...]:
    """The rows of `path`, of the schema ``rationales``; errors as `read_conversations` has them."""
    return _rows(path, Rationale.from_value)


def _rows(path: Path, read: Callable[[object], T]) -> tuple[T, ...]:
    lines = path.read_bytes().splitlines()
    if not lines:
        raise InvalidDataError("no rows", file=path.name)
    return tuple(_row(path.name, number, line, read) for number, line in enumerate(lines, 1))


def _row(file: str, number: int, line: bytes, read: Callable[[object], T]) -> T:
    try:
        return read(strict_json.loads(line))
    except InvalidRecordError as error:
        raise error.under(f"row {number}").in_file(file) from None


def _messages(fields: Fields) -> Messages:
    return fields.records("messages", _message)


def _message(value: object) -> Mapping[str, str]:
    fields = Fields(value)
    message = {"role": fields.text("role"), "content": fields.text("content")}
    fields.done()
    return message


def _columns(value: object) -> Mapping[str, str]:
    fields = Fields(value)
    columns = {name: fields.text(name) for name in value}  # type: ignore[attr-defined]  # Fields has checked that it is a map
    fields.done()
    return columns


def _exactly(kind: type[T], value: object) -> T:
    if type(value) is not kind:
        expected = "text" if kind is str else "true or false"
        raise InvalidRecordError("wrong type", expected=expected, actual=shown(value))
    return value


def _written(fields: Fields, name: str) -> str:
    """The text under `name`, which is not blank."""
    text = fields.text(name)
    if not text.strip():
        raise InvalidRecordError("an empty text", where=name)
    return text


def _decimal(fields: Fields, name: str) -> str:
    """The text under `name`, a decimal number of 0 or more in its plain form."""
    return fields.parsed(name, _plain)


def _decimal_or_nothing(fields: Fields, name: str) -> str:
    return fields.parsed(name, lambda text: text and _plain(text))


def _plain(text: str) -> str:
    if render_decimal(parse_decimal(text)) != text or text.startswith("-"):
        raise InvalidRecordError(
            "not a plain decimal number of 0 or more", expected="such as 0.5", actual=repr(text)
        )
    return text
