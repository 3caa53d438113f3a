"""Derivations: the hashed description of one build (spec/derivation.md).

Everything that can change an output byte is a field, and the digest covers every field. Where an
input is another derivation's output, the *resolved* derivation names its content instead;
claims and look-ups use the resolved one, which is what early cutoff is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self, TypeVar

from kolm_build.core import cbor
from kolm_build.core.digest import Digest, RecordKind
from kolm_build.core.fields import Fields
from kolm_build.core.name import parse_label
from kolm_build.core.numerics import Numerics, Platform
from kolm_build.errors import InvalidRecordError

VERSION = 1

Param = str | int

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentInput:
    """An input given by the digest of its tree."""

    content: Digest

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {"content": self.content.raw}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputInput:
    """An input that is an output of another derivation."""

    derivation: Digest
    output: str

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {"derivation": self.derivation.raw, "output": self.output}


Input = ContentInput | OutputInput


def _input(value: object) -> Input:
    fields = Fields(value)
    made: Input
    if fields.has("content"):
        made = ContentInput(content=Digest(fields.take("content", bytes)))
    else:
        made = OutputInput(
            derivation=Digest(fields.take("derivation", bytes)),
            output=parse_label(fields.text("output")),
        )
    fields.done()
    return made


@lru_cache(maxsize=1024)
def _check_names(names: tuple[str, ...], what: str) -> None:
    """Refuse bad names; kept for names that were good, since steps of one kind share them."""
    for name in names:
        parse_label(name)
    if list(names) != sorted(set(names)):
        raise InvalidRecordError("names out of order or repeated", where=what)


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """The description of one build.

    Attributes:
        name: The node's name, for people; part of the record.
        step: The name of the step.
        code: Digest of the step's code tree.
        environment: Digest of the environment the step runs in; None for a step that needs the
            interpreter's standard library and the code tree alone.
        params: Sorted (name, text or integer) pairs. Decimal numbers are text.
        inputs: Sorted (role, input) pairs.
        outputs: Sorted (name, expected tree digest or None) pairs; an expected digest makes the
            derivation fixed-output, which alone may use the network.
        numerics: How it may compute.
        platform: The kind of machine; given exactly where the class is `native-1`.
    """

    name: str
    step: str
    code: Digest
    environment: Digest | None
    params: tuple[tuple[str, Param], ...]
    inputs: tuple[tuple[str, Input], ...]
    outputs: tuple[tuple[str, Digest | None], ...]
    numerics: Numerics
    platform: Platform | None = None

    def __post_init__(self) -> None:
        parse_label(self.name)
        parse_label(self.step)
        _check_names(tuple(name for name, _ in self.params), "params")
        _check_names(tuple(role for role, _ in self.inputs), "inputs")
        _check_names(tuple(name for name, _ in self.outputs), "outputs")
        if not self.outputs:
            raise InvalidRecordError("a derivation has at least one output", where="outputs")
        for name, value in self.params:
            if type(value) not in (str, int):
                raise InvalidRecordError(
                    "a parameter is text or an integer",
                    where=f"params.{name}",
                    actual=repr(value)[:80],
                    advice="Write a decimal number as text.",
                )
        if (self.platform is None) == (self.numerics.cls == "native-1"):
            raise InvalidRecordError(
                "a platform is named exactly in the class native-1", where="platform"
            )

    @property
    def is_fixed(self) -> bool:
        """Whether every output's content is known in advance."""
        return all(expected is not None for _, expected in self.outputs)

    @property
    def is_resolved(self) -> bool:
        """Whether every input is given by content."""
        return all(isinstance(value, ContentInput) for _, value in self.inputs)

    @property
    def needs(self) -> tuple[OutputInput, ...]:
        """The inputs that are other derivations' outputs, in role order."""
        return tuple(value for _, value in self.inputs if isinstance(value, OutputInput))

    def to_value(self) -> dict[str, object]:
        """The record's plain value."""
        return {
            "v": VERSION,
            "name": self.name,
            "step": self.step,
            "code": self.code.raw,
            "environment": self.environment.raw if self.environment else None,
            "params": dict(self.params),
            "inputs": {role: value.to_value() for role, value in self.inputs},
            "outputs": {
                name: {"method": "tree-1"}
                | ({"expect": expected.raw} if expected is not None else {})
                for name, expected in self.outputs
            },
            "numerics": self.numerics.to_value(),
            "platform": self.platform.to_value() if self.platform else None,
        }

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        fields.version(VERSION)
        fields.require("params", "inputs", "outputs")
        made = cls(
            name=fields.text("name"),
            step=fields.text("step"),
            code=Digest(fields.take("code", bytes)),
            environment=_environment(fields),
            params=_params(fields.table("params")),
            inputs=_pairs(fields.table("inputs"), "inputs", _input),
            outputs=_pairs(fields.table("outputs"), "outputs", _output),
            numerics=fields.record("numerics", Numerics.from_value),
            platform=_platform(fields),
        )
        fields.done()
        return made

    def encode(self) -> bytes:
        """The canonical bytes."""
        return cbor.encode(self.to_value())

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The inverse of `encode`, strict."""
        return cls.from_value(cbor.decode(data))

    @property
    def digest(self) -> Digest:
        """The derivation's id, which locks and people cite."""
        return Digest.of_record(self.encode(), RecordKind.DERIVATION)

    def resolve(self, content: Mapping[OutputInput, Digest]) -> Self:
        """This derivation with each input replaced by its content.

        Args:
            content: The content of every input in `needs`.

        Raises:
            KeyError: One is missing; a mistake of the caller.
        """
        return replace(
            self,
            inputs=tuple(
                (
                    role,
                    value
                    if isinstance(value, ContentInput)
                    else ContentInput(content=content[value]),
                )
                for role, value in self.inputs
            ),
        )

    @property
    def resolved_digest(self) -> Digest:
        """The key of claims and look-ups.

        The name is left out: two nodes that do the same thing to the same content are one.

        Raises:
            InvalidRecordError: An input is not given by content.
        """
        if not self.is_resolved:
            raise InvalidRecordError("an input is not resolved", where="inputs")
        return self.resolved_digest_with({})

    def resolved_digest_with(self, content: Mapping[OutputInput, Digest]) -> Digest:
        """``self.resolve(content).resolved_digest``, without making the record in between.

        Raises:
            KeyError: The content of an input in `needs` is missing; a mistake of the caller.
        """
        value = self.to_value()
        del value["name"]
        value["inputs"] = {
            role: {"content": (content[one] if isinstance(one, OutputInput) else one.content).raw}
            for role, one in self.inputs
        }
        return Digest.of_record(cbor.encode(value), RecordKind.RESOLVED)


def _environment(fields: Fields) -> Digest | None:
    raw = fields.nullable("environment", bytes)
    return None if raw is None else Digest(raw)


def _platform(fields: Fields) -> Platform | None:
    if fields.is_null("platform"):
        return None
    return fields.record("platform", Platform.from_value)


def _params(table: Mapping[str, object]) -> tuple[tuple[str, Param], ...]:
    return tuple((name, table[name]) for name in sorted(table))  # type: ignore[misc]


def _output(value: object) -> Digest | None:
    fields = Fields(value)
    method = fields.text("method")
    if method != "tree-1":
        raise InvalidRecordError(
            "unknown output method", where="method", expected="tree-1", actual=repr(method)
        )
    expected = Digest(fields.take("expect", bytes)) if fields.has("expect") else None
    fields.done()
    return expected


def _pairs(
    table: Mapping[str, object], where: str, read: Callable[[object], T]
) -> tuple[tuple[str, T], ...]:
    pairs = []
    for name in sorted(table):
        try:
            pairs.append((name, read(table[name])))
        except InvalidRecordError as error:
            raise error.under(f"{where}.{name}") from None
    return tuple(pairs)
