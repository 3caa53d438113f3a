"""What changed between two locks, and which nodes' bytes that can reach (spec/lock.md)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

from kolm_build.core.derivation import ContentInput, Derivation, Input
from kolm_build.core.digest import Digest
from kolm_build.core.lock import Lock, LockedInput

CANNOT, MAY, NEW, GONE = "cannot change", "may change", "new", "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class LockChange:
    """One entry that differs.

    Attributes:
        kind: ``weights``, ``data``, ``code``, ``environment``, ``numerics`` or ``recipe``.
        name: Which entry of that kind.
        before: What it was; None where it is new.
        after: What it is; None where it is gone.
    """

    kind: str
    name: str
    before: str | None
    after: str | None

    def to_value(self) -> dict[str, object]:
        """The change as a JSON object."""
        return {"kind": self.kind, "name": self.name, "before": self.before, "after": self.after}

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.before or 'absent'} -> {self.after or 'absent'}"


def lock_changes(before: Lock, after: Lock) -> tuple[LockChange, ...]:
    """Every entry in which `after` differs from `before`, sorted by kind and name."""
    old, new = dict(_entries(before)), dict(_entries(after))
    return tuple(
        LockChange(kind=key[0], name=key[1], before=old.get(key), after=new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    )


def _entries(lock: Lock) -> Iterator[tuple[tuple[str, str], str]]:
    """Every entry of a lock as text, under its kind and name."""
    for one in lock.inputs:
        yield from _input_entries(one)
    for step, tree in lock.code.items():
        yield ("code", f"step {step}"), str(tree)
    environment = lock.environment
    yield ("environment", "python"), f"{environment.python} {environment.interpreter}"
    for distribution in environment.distributions:
        key = "environment", distribution.name
        yield key, f"{distribution.version} {distribution.content}"
    for name, value in lock.numerics.to_value().items():
        yield ("numerics", name), str(value)
    if lock.kernels is not None:
        yield ("numerics", "kernels"), str(lock.kernels)
    if lock.minimum_grade is not None:
        yield ("release", "minimum grade"), lock.minimum_grade
    for section, digest in lock.sections.items():
        yield ("recipe", f"[{section}]"), str(digest)


def _input_entries(one: LockedInput) -> Iterator[tuple[tuple[str, str], str]]:
    yield (one.kind, one.name), f"{one.source} {one.tree}"
    if one.licence:
        yield (one.kind, f"{one.name} licence"), one.licence
    for file in one.files:
        yield (one.kind, f"{one.name} file {file.path}"), str(file.b3)


def effects(before: Mapping[str, Derivation], after: Mapping[str, Derivation]) -> dict[str, str]:
    """What a change of derivations can do to each node's bytes, by node name.

    A node's bytes cannot change if it is the same apart from its name, and so is everything
    above it up to the outputs that a digest fixes. What may change need not: a step can well give
    the same bytes again.

    Args:
        before: The earlier derivations by node name, each after all that it needs.
        after: The later ones.
    """
    numbers: dict[Hashable, int] = {}
    old, new = _facts(before, numbers), _facts(after, numbers)
    found = {node: GONE for node in before if node not in after}
    for node, facts in new.items():
        found[node] = NEW if node not in old else CANNOT if old[node] == facts else MAY
    return found


def _facts(nodes: Mapping[str, Derivation], numbers: dict[Hashable, int]) -> dict[str, int]:
    """A number for each node, equal for equal ones: all that can reach its bytes, or its bytes."""
    by_digest: dict[Digest, tuple[Derivation, int]] = {}
    facts: dict[str, int] = {}
    for node, derivation in nodes.items():
        own: Hashable = derivation.outputs if derivation.is_fixed else _own(derivation, by_digest)
        facts[node] = numbers.setdefault(own, len(numbers))
        by_digest[derivation.digest] = derivation, facts[node]
    return facts


def _own(derivation: Derivation, above: Mapping[Digest, tuple[Derivation, int]]) -> Hashable:
    return (
        derivation.step,
        derivation.code,
        derivation.environment,
        derivation.params,
        tuple((role, _origin(value, above)) for role, value in derivation.inputs),
        derivation.outputs,
        derivation.numerics,
        derivation.platform,
    )


def _origin(value: Input, above: Mapping[Digest, tuple[Derivation, int]]) -> Hashable:
    """An input by its content where that is known, else by what it comes from."""
    if isinstance(value, ContentInput):
        return value.content
    derivation, facts = above[value.derivation]
    expected = dict(derivation.outputs)[value.output]
    return expected if expected is not None else (facts, value.output)
