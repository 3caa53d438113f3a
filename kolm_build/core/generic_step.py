"""Generic steps: nodes that a recipe spells out, and what they take in (spec/recipe.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial

from kolm_build.core.bounded import Params, params, texts, unknown_name
from kolm_build.core.closure import find_cycle
from kolm_build.core.fields import Fields
from kolm_build.core.name import parse_label
from kolm_build.core.source import PATH, is_local, parse_path, parse_source
from kolm_build.errors import InvalidRecordError


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOutput:
    """A reference to an output of a node: ``node`` or ``node.output``."""

    node: str
    output: str = "out"

    def __str__(self) -> str:
        return self.node if self.output == "out" else f"{self.node}.{self.output}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPath:
    """A reference to a file or folder beside the recipe: ``path:./x``."""

    path: str

    def __str__(self) -> str:
        return PATH + self.path


Reference = NodeOutput | LocalPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One entry of ``[[step]]``.

    Attributes:
        name: The node's name.
        step: The step's name in the table of steps.
        inputs: Sorted (role, reference) pairs.
        params: Sorted (name, text or integer) pairs.
        outputs: The outputs' names; empty for those of the table.
    """

    name: str
    step: str
    inputs: tuple[tuple[str, Reference], ...]
    params: Params
    outputs: tuple[str, ...] = ()

    def to_value(self) -> list[object]:
        """The plain value: in the order of the attributes."""
        inputs = [[role, str(reference)] for role, reference in self.inputs]
        return [self.name, self.step, inputs, self.params, self.outputs]


def read_step(value: object) -> Step:
    """The entry of ``[[step]]`` in `value`.

    Raises:
        InvalidRecordError: It is not one; whether its step exists is for instantiation to say.
    """
    fields = Fields(value)
    made = Step(
        name=fields.parsed("name", _node_name),
        step=fields.parsed("step", parse_label),
        inputs=fields.record("inputs", _references),
        params=params(fields, "params"),
        outputs=tuple(sorted(texts(fields, "outputs", parse_label))),
    )
    fields.done()
    if made.step == "fetch":
        _check_fetch(dict(made.params))
    return made


def _references(value: object) -> tuple[tuple[str, Reference], ...]:
    fields = Fields(value)
    pairs = []
    for role in sorted(value):  # type: ignore[call-overload]  # Fields has checked that it is a map
        try:
            parse_label(role)
        except InvalidRecordError as error:
            raise error.under(role) from None
        pairs.append((role, fields.parsed(role, parse_reference)))
    return tuple(pairs)


def parse_reference(text: str) -> Reference:
    """The reference that `text` spells: ``node``, ``node.output`` or ``path:./x``.

    Raises:
        InvalidRecordError: It is none of them.
    """
    if is_local(text):
        return LocalPath(path=parse_path(text.removeprefix(PATH)))
    node, dot, output = text.partition(".")
    try:
        return NodeOutput(node=parse_label(node), output=parse_label(output) if dot else "out")
    except InvalidRecordError:
        raise InvalidRecordError(
            "not a reference", expected="node, node.output or path:./x", actual=repr(text)[:80]
        ) from None


def _check_fetch(params: Mapping[str, str | int]) -> None:
    text = params.get("source")
    if type(text) is not str:
        raise InvalidRecordError("missing value", where="params.source", expected="text")
    try:
        parse_source(text)
    except InvalidRecordError as error:
        raise error.under("params.source") from None
    if is_local(text):
        raise InvalidRecordError(
            "a local path is not fetched", where="params.source", advice="Name it as an input."
        )


def check_graph(
    steps: Sequence[Step], *, others: AbstractSet[str], reserved: AbstractSet[str]
) -> None:
    """Refuse steps of one name, references to nothing, and cycles.

    Args:
        steps: The generic steps.
        others: The other nodes that they may refer to.
        reserved: Names that they may not have.

    Raises:
        InvalidRecordError: There is one; the error says where, and spells a cycle out.
    """
    by_name: dict[str, Step] = {}
    for index, step in enumerate(steps):
        if step.name in reserved or by_name.setdefault(step.name, step) is not step:
            raise InvalidRecordError(
                "two nodes of one name", where=f"step[{index}].name", actual=repr(step.name)
            )
    known = by_name.keys() | others
    for index, step in enumerate(steps):
        for role, reference in step.inputs:
            if isinstance(reference, NodeOutput) and reference.node not in known:
                where = f"step[{index}].inputs.{role}"
                raise unknown_name("node", reference.node, known, where=where)
    cycle = find_cycle(by_name, partial(_needs, by_name))
    if cycle:
        raise InvalidRecordError(
            "steps that need one another", where="step", actual=" needs ".join((*cycle, cycle[0]))
        )


def _needs(steps: Mapping[str, Step], name: str) -> Iterator[str]:
    """The generic steps that the step `name` takes inputs from."""
    for _, reference in steps[name].inputs:
        if isinstance(reference, NodeOutput) and reference.node in steps:
            yield reference.node


def _node_name(text: str) -> str:
    """`text` as a label without dots: ``node.output`` must have one reading."""
    if "." in text:
        raise InvalidRecordError("a name without dots is needed", actual=repr(text)[:80])
    return parse_label(text)
