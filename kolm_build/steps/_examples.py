"""Examples: rows that can be used, each once, and on which side each is (spec/dataset.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kolm_build.core import cbor
from kolm_build.core.split import is_holdout
from kolm_build.errors import InvalidDataError
from kolm_build.steps._cells import Cells
from kolm_build.steps._rows import Row, read_rows
from kolm_build.steps._schemas import Body, Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A row that can be used.

    Attributes:
        number: The row's number in the file.
        body: What it says.
        group: The row's group; empty without groups.
        system: The system message; empty for none.
    """

    number: int
    body: Body
    group: str
    system: str

    @property
    def key(self) -> str:
        """What decides the row's side, and has to be on one."""
        return self.group or self.body.prompt

    @property
    def value(self) -> Mapping[str, object]:
        """The row as its line holds it."""
        value = {"group": self.group, "messages": self._messages(), **self.body.fields}
        digest = hashlib.sha256(cbor.encode(value)).hexdigest()
        return value | {"id": f"sha256:{digest}"}

    def _messages(self) -> list[object]:
        if not self.body.turns:
            return []
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, {"role": "user", "content": self.body.prompt}]


def read_examples(file: Path, form: str, shape: Shape, *, group: str, system: str) -> list[Example]:
    """The rows of `file`, in its order.

    Args:
        file: The file.
        form: ``jsonl``, ``csv`` or ``parquet``.
        shape: What rows are made of.
        group: The column whose rows stay together; empty for none.
        system: The system message; empty for none.

    Raises:
        InvalidDataError: A row cannot be used, or is there twice; the error names it.
    """
    columns = tuple(dict.fromkeys((*shape.columns, *((group,) if group else ()))))
    examples = [
        _example(row, shape, group=group, system=system) for row in read_rows(file, form, columns)
    ]
    if not examples:
        raise InvalidDataError("the file has no rows")
    _check_once(examples, shape)
    return examples


def _example(row: Row, shape: Shape, *, group: str, system: str) -> Example:
    cells = Cells(row)
    made = Example(
        number=row.number,
        body=shape.body(cells),
        group=cells.text(group) if group else "",
        system=system,
    )
    if group and not made.group.strip():
        raise cells.error("an empty group", expected=f"text in {group!r}")
    return made


def _check_once(examples: Sequence[Example], shape: Shape) -> None:
    """Refuse a row that is there twice: a duplicate, or a contradiction."""
    first: dict[object, Example] = {}
    again = [one for one in examples if first.setdefault(one.body.subject, one) is not one]
    if not again:
        return
    row, twin = again[0], first[again[0].body.subject]
    same = row.body.verdict == twin.body.verdict
    raise InvalidDataError(
        "a duplicate row" if same else shape.twice,
        where=f"row {row.number}",
        expected="each prompt once, or each answer to it",
        actual=f"row {twin.number} has the prompt {shown(row.body.content)}"
        + ("" if same else f": {row.body.verdict!r:.40} against {twin.body.verdict!r:.40}"),
        advice=f"{len(again)} such rows in all; deduplicate in a script.",
    )


def split(
    examples: Sequence[Example], *, seed: str, modulus: int, all_may_train: bool
) -> tuple[list[Example], list[Example]]:
    """The training and the held-out rows.

    Args:
        examples: All rows.
        seed: The recipe's split seed.
        modulus: One over the share that is held out.
        all_may_train: Whether there may be no held-out rows.

    Raises:
        InvalidDataError: A side has no rows.
    """
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        sides[is_holdout(example.key, seed, modulus)].append(example)
    empty = [not sides[0], not sides[1] and not all_may_train]
    if any(empty):
        raise InvalidDataError(
            f"the split leaves no {'training' if empty[0] else 'held-out'} rows",
            actual=f"{len(examples)} rows, {len({one.key for one in examples})} keys",
            advice="Bring more rows or groups, or change [split] modulus or seed.",
        )
    return sides


def shown(text: str) -> str:
    """`text` for an error message, short."""
    return repr(text if len(text) <= 60 else text[:59] + "…")
