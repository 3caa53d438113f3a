"""``dataset``: rows of a file to training rows and held-out rows (spec/dataset.md).

The templates make of each row what its schema asks for; the split puts the row on one side by its
own key; what cannot be trained on or measured with is refused with its row's number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from kolm_build.core import merkle, strict_json
from kolm_build.core.fields import Fields
from kolm_build.core.provenance import Teacher
from kolm_build.core.request import StepRequest
from kolm_build.core.split import MODULUS
from kolm_build.errors import InvalidDataError, InvalidRecordError
from kolm_build.steps._call_log import provenance_of
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._examples import Example, read_examples, split
from kolm_build.steps._files import input_folder, only_file, output_folder
from kolm_build.steps._kept_out import COMPARED, KeptOut, leaks_of, read_kept_out
from kolm_build.steps._leakage import Leak
from kolm_build.steps._rows import SUFFIXES
from kolm_build.steps._schemas import SHAPES, Shape

FORMAT = "dataset/1"
MAX_COUNTED_ANSWERS = 256
"""More distinct answers than this are texts, not classes: the report tells their number alone."""

AGAINST = "against"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetParams:
    """What the recipe says of the data.

    Attributes:
        form: ``jsonl``, ``csv``, ``parquet``, or empty: what the file's name says.
        schema: What a row holds.
        shape: How that is made of the file's columns.
        system: The system message; empty for none.
        group: The column whose rows stay together; empty for none.
        split_seed: Seed of the split.
        modulus: One key in this many is held out.
        drop_leaks: Whether a leaking training row is dropped; if not, it is an error.
        teacher: Who answered, where the rows are recorded answers.
    """

    form: str
    schema: str
    shape: Shape
    system: str
    group: str
    split_seed: str
    modulus: int
    drop_leaks: bool
    teacher: Teacher | None

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The parameters in a derivation, strict."""
        fields = Fields(value)
        schema = _one_of(fields, "schema", tuple(SHAPES))
        made = cls(
            form=_one_of(fields, "format", ("", *SUFFIXES.values())),
            schema=schema,
            shape=SHAPES[schema].take(fields),
            system=fields.text("system", default=""),
            group=fields.text("group", default=""),
            split_seed=fields.text("split_seed", default=""),
            modulus=fields.integer("modulus", default=MODULUS),
            drop_leaks=_one_of(fields, "leakage", ("refuse", "drop")) == "drop",
            teacher=Teacher.of_params(fields),
        )
        fields.done()
        return made


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run)


def run(request: StepRequest, events: Events) -> None:
    """Write train.jsonl, holdout.jsonl, compared.jsonl and report.json."""
    params = _under("params", DatasetParams.from_value, request.params)
    file = only_file(
        input_folder(request, "rows"),
        role="rows",
        suffixes=[end for end, form in SUFFIXES.items() if params.form in ("", form)],
    )
    against = _against(request)
    provenance = provenance_of(request, params.teacher)
    try:
        made = _made(file, params, against)
    except InvalidRecordError as error:
        raise error.in_file(file.name) from None
    sides = {"train": _side(made.kept, params), "holdout": _side(made.holdout, params)}
    for name, side in sides.items():
        (output_folder(request, name) / f"{name}.jsonl").write_bytes(b"".join(side.lines))
    compared = b"".join(KeptOut.of(example).line for example in made.holdout)
    if "compared" in request.outputs:  # a recipe's own step may ask for the other three alone
        (output_folder(request, "compared") / COMPARED).write_bytes(compared)
    report = {
        "format": FORMAT,
        "schema": params.schema,
        "source": {"file": file.name, "rows": made.rows},
        "split": {"group": params.group, "modulus": params.modulus, "seed": params.split_seed},
        "dropped": made.dropped,
        **provenance,
        **{name: side.to_value() for name, side in sides.items()},
    }
    (output_folder(request, "report") / "report.json").write_bytes(strict_json.dumps(report))
    told = f"{len(made.kept)} training rows, {len(made.holdout)} held out"
    events.log(f"{told}, {len(made.dropped)} dropped")


def _against(request: StepRequest) -> tuple[KeptOut, ...] | None:
    """The held-out rows of `[data]`; None where these are the rows of `[data]`."""
    if AGAINST not in request.inputs:
        return None
    return read_kept_out(input_folder(request, AGAINST) / COMPARED)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """What was made of a file.

    Attributes:
        rows: Its rows.
        kept: Those to train on.
        holdout: Those held out.
        dropped: What the report tells of those dropped.
    """

    rows: int
    kept: Sequence[Example]
    holdout: Sequence[Example]
    dropped: Sequence[Mapping[str, object]]


def _made(file: Path, params: DatasetParams, against: Sequence[KeptOut] | None) -> _Made:
    form = params.form or SUFFIXES[file.suffix.lower()]
    examples = read_examples(file, form, params.shape, group=params.group, system=params.system)
    train, holdout = split(
        examples,
        seed=params.split_seed,
        modulus=params.modulus,
        all_may_train=against is not None,
    )
    kept_out = [*map(KeptOut.of, holdout), *(against or ())]
    leaks = leaks_of(train, kept_out, drop=params.drop_leaks)
    leaking = {leak.train for leak in leaks}
    kept = [example for index, example in enumerate(train) if index not in leaking]
    if not kept:
        raise InvalidDataError("every training row leaks")
    return _Made(
        rows=len(examples),
        kept=kept,
        holdout=holdout,
        dropped=[_leak_value(leak, train, kept_out) for leak in leaks],
    )


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
    counted = (example.body.counted for example in examples)
    return _Side(
        lines=[strict_json.dumps(example.value) + b"\n" for example in examples],
        answers=Counter(text for text in counted if text is not None),
        groups=len({example.group for example in examples}) if params.group else 0,
    )


def _leak_value(
    leak: Leak, train: Sequence[Example], kept_out: Sequence[KeptOut]
) -> dict[str, object]:
    twin = kept_out[leak.holdout]
    return {
        "row": train[leak.train].number,
        "like": twin.id,
        "like_row": twin.number or None,
        "kind": leak.kind,
        "shared": leak.shared,
        "either": leak.either,
    }


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
