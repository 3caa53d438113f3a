"""Training and held-out rows, as the steps that train and evaluate read them (spec/dataset.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kolm_build.core import strict_json
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidDataError, InvalidRecordError


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
    messages: tuple[Mapping[str, str], ...]
    answer: str
    group: str

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The row in `value`, strict."""
        fields = Fields(value)
        row = cls(
            id=fields.text("id"),
            messages=fields.records("messages", _message),
            answer=fields.text("answer"),
            group=fields.text("group"),
        )
        fields.done()
        return row


def read_conversations(path: Path) -> tuple[Conversation, ...]:
    """The rows of the JSON lines file `path`.

    Raises:
        InvalidDataError: There is none.
        InvalidRecordError: A line is not a row; `where` is its number.
    """
    lines = path.read_bytes().splitlines()
    if not lines:
        raise InvalidDataError("no rows", file=path.name)
    return tuple(_row(path.name, number, line) for number, line in enumerate(lines, 1))


def _row(file: str, number: int, line: bytes) -> Conversation:
    try:
        return Conversation.from_value(strict_json.loads(line))
    except InvalidRecordError as error:
        raise error.under(f"row {number}").in_file(file) from None


def _message(value: object) -> Mapping[str, str]:
    fields = Fields(value)
    message = {"role": fields.text("role"), "content": fields.text("content")}
    fields.done()
    return message
