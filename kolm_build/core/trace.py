"""The trace of a training: one leaf for each optimiser step under one root (spec/trace.md).

Leaf 0 is how the training began; leaf k is what was after step k. The root is in the step's
output, so a claim about the output is one about every step, and the first step in which two
trainings part is found by comparing hashes of halves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from kolm_build.core import merkle, strict_json
from kolm_build.core.digest import Sha256
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError

FORMAT = "trace/1"
HEAD_FILE = "trace.json"
STEPS_FILE = "trace.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What one training leaves of every step.

    Attributes:
        start: How it began: parameters, and digests of what it began with.
        lines: The strict JSON of each optimiser step, in order, without line ends.
    """

    start: Mapping[str, object]
    lines: tuple[bytes, ...]

    @property
    def leaves(self) -> Sequence[bytes]:
        """The leaves: the start, then the steps."""
        return (strict_json.dumps(self.start), *self.lines)

    @property
    def root(self) -> Sha256:
        """The root over the leaves."""
        return Sha256(merkle.root(self.leaves))

    def step(self, number: int) -> Mapping[str, object]:
        """What is known of step `number`; of the start for 0."""
        if number == 0:
            return self.start
        return _object(self.lines[number - 1], f"line {number}")

    def files(self) -> Mapping[str, bytes]:
        """The files of the output, by name."""
        head = {
            "format": FORMAT,
            "root": str(self.root),
            "start": dict(self.start),
            "steps": len(self.lines),
        }
        steps = b"".join(line + b"\n" for line in self.lines)
        return {HEAD_FILE: strict_json.dumps(head), STEPS_FILE: steps}

    @classmethod
    def of_files(cls, head: bytes, steps: bytes) -> Self:
        """The trace in the two files.

        Raises:
            InvalidRecordError: A file is bad, or the root is not that of the leaves.
        """
        try:
            fields = Fields(strict_json.loads(head))
            start = _check_head(fields)
            count, root = fields.integer("steps"), fields.parsed("root", Sha256.parse)
            fields.done()
        except InvalidRecordError as error:
            raise error.in_file(HEAD_FILE) from None
        made = cls(start=start, lines=tuple(steps.splitlines()))
        made.check_lines(count)
        if made.root != root:
            raise InvalidRecordError(
                "the root is not that of the steps",
                file=HEAD_FILE,
                where="root",
                expected=str(made.root),
                actual=str(root),
            )
        return made

    def check_lines(self, count: int) -> None:
        """Refuse lines that are not the strict JSON of steps 1 to `count`."""
        try:
            if len(self.lines) != count:
                raise InvalidRecordError(
                    "another number of steps", expected=str(count), actual=str(len(self.lines))
                )
            for number, line in enumerate(self.lines, 1):
                step = _object(line, f"line {number}")
                if step.get("step") != number or strict_json.dumps(step) != line:
                    raise InvalidRecordError("not the line of this step", where=f"line {number}")
        except InvalidRecordError as error:
            raise error.in_file(STEPS_FILE) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parting:
    """The first leaf in which two traces differ.

    Attributes:
        step: Its number: 0 for the start.
        parts: Names of what differs in it, sorted; empty where one trace ends before it.
    """

    step: int
    parts: tuple[str, ...]

    def to_value(self) -> dict[str, object]:
        """The parting as a JSON object."""
        return {"step": self.step, "parts": list(self.parts)}


def parting(one: Trace, other: Trace) -> Parting | None:
    """Where two traces part; None where they are equal."""
    trees = merkle.Tree(one.leaves), merkle.Tree(other.leaves)
    common = min(map(len, trees))
    step = merkle.first_difference(trees[0].node, trees[1].node, common)
    if step is not None:
        return Parting(step=step, parts=_differing(one.step(step), other.step(step)))
    return None if len(trees[0]) == len(trees[1]) else Parting(step=common, parts=())


def beginnings(one: Trace, other: Trace) -> Mapping[str, tuple[object, object]]:
    """What differs in how two trainings began: names as in `Parting`, and both values.

    Returns:
        Name to the values of `one` and `other`; None where one has no such member.
    """
    names = _differing(one.start, other.start)
    return {name: (_member(one.start, name), _member(other.start, name)) for name in names}


def _member(table: Mapping[str, object], name: str) -> object:
    """The value at `name`, whose dots lead into tables."""
    value: object = table
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _differing(one: Mapping[str, object], other: Mapping[str, object]) -> tuple[str, ...]:
    """Names whose values differ; of tables the names inside them."""
    found = []
    for name in sorted(one.keys() | other.keys()):
        left, right = one.get(name), other.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += [f"{name}.{part}" for part in _differing(left, right)]
        elif left != right:
            found.append(name)
    return tuple(found)


def _check_head(fields: Fields) -> Mapping[str, object]:
    form = fields.text("format")
    if form != FORMAT:
        raise InvalidRecordError(
            "another format", where="format", expected=FORMAT, actual=repr(form)
        )
    return fields.table("start")


def _object(line: bytes, where: str) -> Mapping[str, object]:
    try:
        value = strict_json.loads(line)
    except InvalidRecordError as error:
        raise error.under(where) from None
    if not isinstance(value, dict):
        raise InvalidRecordError("not an object", where=where)
    return value
