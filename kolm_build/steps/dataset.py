"""``dataset``: rows of a file to training rows and held-out rows (spec/dataset.md).

The template makes a prompt and an answer of each row; the split puts the row on one side by its
own key; what cannot be trained on or measured with is refused with its row's number.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar
from unicodedata import normalize

from kolm_build.core import cbor, merkle, strict_json
from kolm_build.core.fields import Fields
from kolm_build.core.request import StepRequest
from kolm_build.core.split import MODULUS, is_holdout
from kolm_build.errors import InvalidDataError, InvalidRecordError
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import input_folder, only_file, output_folder
from kolm_build.steps._leakage import EXACT, NEAR, NORMALISED, Leak, find_leaks
from kolm_build.steps._rows import SUFFIXES, Row, read_rows
from kolm_build.steps._template import Template

FORMAT = "dataset/1"
MAX_COUNTED_ANSWERS = 256
"""More distinct answers than this are texts, not classes: the report tells their number alone."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetParams:
    """What the recipe says of the data.

    Attributes:
        form: ``jsonl``, ``csv``, ``parquet``, or empty: what the file's name says.
        prompt: Template of the user's message.
        answer: Template of the answer.
        system: The system message; empty for none.
        group: The column whose rows stay together; empty for none.
        split_seed: Seed of the split.
        modulus: One key in this many is held out.
        drop_leaks: Whether a leaking training row is dropped; if not, it is an error.
    """

    form: str
    prompt: Template
    answer: Template
    system: str
    group: str
    split_seed: str
    modulus: int
    drop_leaks: bool

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The parameters in a derivation, strict."""
        fields = Fields(value)
        made = cls(
            form=_one_of(fields, "format", ("", *SUFFIXES.values())),
            prompt=fields.parsed("prompt", _template),
            answer=fields.parsed("answer", _template),
            system=fields.text("system", default=""),
            group=fields.text("group", default=""),
            split_seed=fields.text("split_seed", default=""),
            modulus=fields.integer("modulus", default=MODULUS),
            drop_leaks=_one_of(fields, "leakage", ("refuse", "drop")) == "drop",
        )
        fields.done()
        return made

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that every row must have."""
        group = (self.group,) if self.group else ()
        return tuple(dict.fromkeys((*self.prompt.columns, *self.answer.columns, *group)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A row as a prompt and an answer.

    Attributes:
        number: The row's number in the file.
        prompt: The user's message.
        answer: The answer.
        group: The row's group; empty without groups.
        content: The values in the prompt without the template's words: what leaks are sought in.
    """

    number: int
    prompt: str
    answer: str
    group: str
    content: str


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run)


def run(request: StepRequest, events: Events) -> None:
    """Write train.jsonl, holdout.jsonl and report.json."""
    params = _under("params", DatasetParams.from_value, request.params)
    file = only_file(
        input_folder(request, "rows"),
        role="rows",
        suffixes=[end for end, form in SUFFIXES.items() if params.form in ("", form)],
    )
    try:
        examples = _examples(file, params)
        train, holdout = _split(examples, params)
        leaks = _leaks(train, holdout, params)
    except InvalidRecordError as error:
        raise error.in_file(file.name) from None
    dropped = {train[leak.train].number for leak in leaks}
    kept = [example for example in train if example.number not in dropped]
    if not kept:
        raise InvalidDataError("every training row leaks", file=file.name)
    sides = {"train": _side(kept, params), "holdout": _side(holdout, params)}
    for name, side in sides.items():
        (output_folder(request, name) / f"{name}.jsonl").write_bytes(b"".join(side.lines))
    report = {
        "format": FORMAT,
        "source": {"file": file.name, "rows": len(examples)},
        "split": {"group": params.group, "modulus": params.modulus, "seed": params.split_seed},
        "dropped": [_leak_value(leak, train, holdout) for leak in leaks],
        **{name: side.to_value() for name, side in sides.items()},
    }
    (output_folder(request, "report") / "report.json").write_bytes(strict_json.dumps(report))
    events.log(f"{len(kept)} training rows, {len(holdout)} held out, {len(leaks)} dropped")


def row_value(example: Example, system: str) -> dict[str, object]:
    """A row as its line holds it, without the id."""
    head = [{"role": "system", "content": system}] if system else []
    return {
        "answer": example.answer,
        "group": example.group,
        "messages": [*head, {"role": "user", "content": example.prompt}],
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """One side of the split: its lines, and what the report says of it."""

    lines: Sequence[bytes]
    answers: Mapping[str, int]
    groups: int

    def to_value(self) -> dict[str, object]:
        classes = len(self.answers) <= MAX_COUNTED_ANSWERS
        return {
            "rows": len(self.lines),
            "root": f"sha256:{merkle.root(line[:-1] for line in self.lines).hex()}",
            "groups": self.groups,
            "distinct_answers": len(self.answers),
            "answers": dict(self.answers) if classes else None,
        }


def _side(examples: Sequence[Example], params: DatasetParams) -> _Side:
    return _Side(
        lines=[_line(row_value(example, params.system)) for example in examples],
        answers=Counter(example.answer for example in examples),
        groups=len({example.group for example in examples}) if params.group else 0,
    )


def _line(value: dict[str, object]) -> bytes:
    digest = hashlib.sha256(cbor.encode(value)).hexdigest()
    return strict_json.dumps(value | {"id": f"sha256:{digest}"}) + b"\n"


def _examples(file: Path, params: DatasetParams) -> list[Example]:
    form = params.form or SUFFIXES[file.suffix.lower()]
    examples = [_example(row, params) for row in read_rows(file, form, params.columns)]
    if not examples:
        raise InvalidDataError("the file has no rows")
    _check_prompts_once(examples)
    return examples


def _example(row: Row, params: DatasetParams) -> Example:
    values = {column: _nfc(row, column) for column in params.columns}
    content = normalize("NFC", "\n".join(values[column] for column in params.prompt.columns))
    answer = normalize("NFC", params.answer.fill(values))
    for what, text in (("prompt", content), ("answer", answer)):
        if not text.strip():
            raise InvalidDataError(f"an empty {what}", where=f"row {row.number}")
    group = values[params.group] if params.group else ""
    if params.group and not group.strip():
        raise InvalidDataError(
            "an empty group", where=f"row {row.number}", expected=f"text in {params.group!r}"
        )
    prompt = normalize("NFC", params.prompt.fill(values))
    return Example(number=row.number, prompt=prompt, answer=answer, group=group, content=content)


def _nfc(row: Row, column: str) -> str:
    """The value in NFC, the one form that is hashed."""
    text = row.text(column)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidDataError(
            "half of a surrogate pair is no character",
            where=f"row {row.number}, column {column!r}",
            actual=ascii(text)[:80],
        ) from None
    return normalize("NFC", text)


def _check_prompts_once(examples: Sequence[Example]) -> None:
    """Refuse a prompt that is there twice: a duplicate, or a contradiction."""
    first: dict[str, Example] = {}
    again = [
        example for example in examples if first.setdefault(example.prompt, example) != example
    ]
    if not again:
        return
    row, twin = again[0], first[again[0].prompt]
    same = row.answer == twin.answer
    raise InvalidDataError(
        "a duplicate row" if same else "two answers to one prompt",
        where=f"row {row.number}",
        expected="each prompt once",
        actual=f"the prompt{' and answer' if same else ''} of row {twin.number}: "
        + (_shown(row.content) if same else f"{row.answer[:40]!r} against {twin.answer[:40]!r}"),
        advice=f"{len(again)} such rows in all; deduplicate in a [data] script.",
    )


def _split(
    examples: Sequence[Example], params: DatasetParams
) -> tuple[list[Example], list[Example]]:
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        key = example.group if params.group else example.prompt
        sides[is_holdout(key, params.split_seed, params.modulus)].append(example)
    for name, side in zip(("training", "held-out"), sides, strict=True):
        if not side:
            raise InvalidDataError(
                f"the split leaves no {name} rows",
                actual=f"{len(examples)} rows, {_keys(examples, params)} keys",
                advice="Bring more rows or groups, or change [split] modulus or seed.",
            )
    return sides


def _keys(examples: Sequence[Example], params: DatasetParams) -> int:
    return len({example.group if params.group else example.prompt for example in examples})


def _leaks(
    train: Sequence[Example], holdout: Sequence[Example], params: DatasetParams
) -> list[Leak]:
    """The leaks to drop.

    Raises:
        InvalidDataError: There is a leak, and leaks are refused.
    """
    leaks = list(find_leaks([e.content for e in train], [e.content for e in holdout]))
    if leaks and not params.drop_leaks:
        leak = leaks[0]
        row, twin = train[leak.train], holdout[leak.holdout]
        raise InvalidDataError(
            f"a training row is held out too: {_KINDS[leak.kind]}",
            where=f"row {row.number}",
            expected="no training row like a held-out row",
            actual=f"{_shown(row.content)} is like row {twin.number}, {_shown(twin.content)}"
            + (f" ({leak.shared} of {leak.either} 13-grams)" if leak.kind == NEAR else ""),
            advice=f"{len(leaks)} such rows in all. Name a group column so that families stay "
            'on one side, or set leakage = "drop" in [split].',
        )
    return leaks


_KINDS: Mapping[str, str] = {
    EXACT: "an exact duplicate",
    NORMALISED: "equal but for case, spaces and punctuation",
    NEAR: "a near duplicate",
}


def _leak_value(
    leak: Leak, train: Sequence[Example], holdout: Sequence[Example]
) -> dict[str, object]:
    return {
        "row": train[leak.train].number,
        "like_row": holdout[leak.holdout].number,
        "kind": leak.kind,
        "shared": leak.shared,
        "either": leak.either,
    }


def _template(text: str) -> Template:
    template = Template.parse(normalize("NFC", text))
    if not template.columns:
        raise InvalidRecordError(
            "the template names no column", expected="such as {text}", actual=repr(text)[:80]
        )
    return template


def _one_of(fields: Fields, name: str, known: Sequence[str]) -> str:
    value = fields.text(name, default=known[0])
    if value not in known:
        raise InvalidRecordError(
            "unknown value",
            where=name,
            expected=" or ".join(map(repr, filter(None, known))),
            actual=repr(value),
        )
    return value


def _under(where: str, read: Callable[[object], T], value: object) -> T:
    try:
        return read(value)
    except InvalidRecordError as error:
        raise error.under(where) from None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")
