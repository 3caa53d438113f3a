"""Which operations a portable build may reach, and why (spec/numerics.md, NUM-90)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from kolm_build.numerics.operations import SECTIONS, How, Section

CONDITIONS: Mapping[str, str] = {
    "converts": "no complex numbers; what the type cannot hold becomes as NUM-57 and NUM-93 say",
    "fits": "a number that the tensor's type holds",
    "integers": "integers and booleans alone",
    "real": "no complex numbers",
}
"""What must hold of a call's arguments, by name."""


@dataclass(frozen=True, slots=True, order=True)
class Operator:
    """A certified operation.

    Attributes:
        name: Its name and overload, such as ``aten::add.Tensor``; another name space than
            ``aten`` is a library's operation in Python.
        how: ``exact``, ``composed``, ``decomposed``, ``replaced`` or ``own``.
        condition: A name of `CONDITIONS`; empty if none.
        section: The title of its section.
        why: The reason, one line.
    """

    name: str
    how: How
    condition: str
    section: str
    why: str


@cache
def table() -> Mapping[str, Operator]:
    """Every certified operation by name, sorted.

    Raises:
        ValueError: The table names an operation twice, or a condition that is not known.
    """
    found: dict[str, Operator] = {}
    for section in SECTIONS:
        for operator in _operators(section):
            if operator.name in found:
                raise ValueError(f"{operator.name} stands in the table twice")
            found[operator.name] = operator
    return dict(sorted(found.items()))


def names(how: How) -> Sequence[str]:
    """The names of the operations that are certified as `how` says, sorted."""
    return [operator.name for operator in table().values() if operator.how == how]


def conditional() -> Mapping[str, str]:
    """The condition of every operation that has one, by the operation's name."""
    return {one.name: one.condition for one in table().values() if one.condition}


def _operators(section: Section) -> Sequence[Operator]:
    return [_operator(word, section) for word in section.operators.split()]


def _operator(word: str, section: Section) -> Operator:
    name, _, rest = word.partition("[")
    condition = rest.rstrip("]")
    if condition and condition not in CONDITIONS:
        raise ValueError(f"{name}: there is no condition {condition!r}")
    return Operator(
        name=name if "::" in name else f"aten::{name}",
        how=section.how,
        condition=condition,
        section=section.title,
        why=section.why,
    )
