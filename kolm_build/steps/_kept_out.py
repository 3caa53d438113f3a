"""Rows that a training must not have seen: those held out here, and those of `[data]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kolm_build.core import strict_json
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidDataError, InvalidRecordError
from kolm_build.steps._examples import Example, shown
from kolm_build.steps._leakage import EXACT, NEAR, NORMALISED, Leak, find_leaks

COMPARED = "compared.jsonl"

_KINDS: Mapping[str, str] = {
    EXACT: "an exact duplicate",
    NORMALISED: "equal but for case, spaces and punctuation",
    NEAR: "a near duplicate",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptOut:
    """A held-out row, as leaks are sought in it.

    Attributes:
        id: Its digest, as text.
        content: The values in its prompt without the template's words.
        number: Its number in the file of the training rows; 0 where it is one of `[data]`.
    """

    id: str
    content: str
    number: int = 0

    @classmethod
    def of(cls, example: Example) -> Self:
        """What is sought in `example`."""
        return cls(id=str(example.value["id"]), content=example.body.content, number=example.number)

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The row that a line of compared.jsonl holds, strict."""
        fields = Fields(value)
        made = cls(id=fields.text("id"), content=fields.text("content"))
        fields.done()
        return made

    @property
    def line(self) -> bytes:
        """Its line in compared.jsonl."""
        return strict_json.dumps({"content": self.content, "id": self.id}) + b"\n"

    def __str__(self) -> str:
        place = f"row {self.number}" if self.number else f"the row {self.id[:19]}… of [data]"
        return f"{place}, {shown(self.content)}"


def read_kept_out(path: Path) -> tuple[KeptOut, ...]:
    """The rows of `path`, a file compared.jsonl.

    Raises:
        InvalidRecordError: A line is not one; `where` is its number.
    """
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            found.append(KeptOut.from_value(strict_json.loads(line)))
        except InvalidRecordError as error:
            raise error.under(f"row {number}").in_file(path.name) from None
    return tuple(found)


def leaks_of(
    train: Sequence[Example], kept_out: Sequence[KeptOut], *, drop: bool
) -> tuple[Leak, ...]:
    """One leak for each row of `train` that is like one of `kept_out`.

    Args:
        train: The training rows.
        kept_out: The rows that they must not be like.
        drop: Whether leaks are to be dropped.

    Raises:
        InvalidDataError: There is a leak, and leaks are refused.
    """
    leaks = tuple(find_leaks([e.body.content for e in train], [e.content for e in kept_out]))
    if leaks and not drop:
        leak = leaks[0]
        row, twin = train[leak.train], kept_out[leak.holdout]
        raise InvalidDataError(
            f"a training row is held out too: {_KINDS[leak.kind]}",
            where=f"row {row.number}",
            expected="no training row like a held-out row",
            actual=f"{shown(row.body.content)} is like {twin}"
            + (f" ({leak.shared} of {leak.either} 13-grams)" if leak.kind == NEAR else ""),
            advice=f"{len(leaks)} such rows in all. Name a group column so that families stay "
            'on one side, or set leakage = "drop" in [split].',
        )
    return leaks
