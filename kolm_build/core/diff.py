"""What changed between two derivations: causes, as data.

An input that is another derivation's output is compared by the *node* it comes from, not by that
derivation's digest: the digest differs whenever anything above differs, which is an effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kolm_build.core.derivation import ContentInput, Derivation, Input
from kolm_build.core.digest import Digest

NodeOf = Callable[[Digest], str]
"""The name of the node that a derivation digest belongs to, for people and for comparing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One part of a derivation that differs; None where a side lacks it.

    Attributes:
        part: The path inside the derivation, such as ``params.learning_rate`` or ``code``.
        before: The part's text before.
        after: The part's text after.
    """

    part: str
    before: str | None
    after: str | None

    def to_value(self) -> dict[str, object]:
        """The change as a JSON object."""
        return {"part": self.part, "before": self.before, "after": self.after}

    def __str__(self) -> str:
        return f"{self.part}: {self.before or 'absent'} -> {self.after or 'absent'}"


def changes(
    before: Derivation, after: Derivation, *, old_node: NodeOf, new_node: NodeOf
) -> tuple[Change, ...]:
    """Every part in which `after` differs from `before`, in the order of the record's fields.

    Args:
        before: The earlier derivation.
        after: The later one.
        old_node: Names the derivations that `before` takes inputs from.
        new_node: Names those of `after`.
    """
    old, new = _parts(before, old_node), _parts(after, new_node)
    order = list(dict.fromkeys([*new, *old]))
    return tuple(
        Change(part=part, before=old.get(part), after=new.get(part))
        for part in order
        if old.get(part) != new.get(part)
    )


def _parts(derivation: Derivation, node_of: NodeOf) -> Mapping[str, str]:
    """The derivation's own facts as text, each under its path."""
    parts = {"step": derivation.step, "code": str(derivation.code)}
    if derivation.environment is not None:
        parts["environment"] = str(derivation.environment)
    parts |= {f"params.{name}": repr(value) for name, value in derivation.params}
    parts |= {f"inputs.{role}": _input(value, node_of) for role, value in derivation.inputs}
    parts |= {
        f"outputs.{name}": "any" if expected is None else str(expected)
        for name, expected in derivation.outputs
    }
    numerics = derivation.numerics.to_value()
    parts |= {f"numerics.{name}": str(value) for name, value in numerics.items()}
    if derivation.platform is not None:
        platform = derivation.platform.to_value()
        parts |= {f"platform.{name}": str(value) for name, value in platform.items()}
    return parts


def _input(value: Input, node_of: NodeOf) -> str:
    if isinstance(value, ContentInput):
        return str(value.content)
    return f"{node_of(value.derivation)}.{value.output}"
