"""Plans: what will be done for the outputs that are wanted, as a value (spec/plan.md).

Two passes over the graph, both without recursion. Upwards, needs first: what is the content of
each output, as far as claims and fixed digests tell? A derivation can be looked up once its
inputs' contents are known, so look-ups go level by level, many at a time. Downwards from what is
wanted: which of these contents must be there in bytes, and so be reused, substituted or built?
What nothing needs is left alone, even where its bytes are long gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from kolm_build.core.derivation import Derivation, OutputInput
from kolm_build.core.digest import Digest
from kolm_build.errors import NotReproducibleError

Key = tuple[Digest, str]
"""A resolved derivation's digest and the name of an output."""

Lookup = Callable[[Sequence[Key]], Mapping[Key, tuple[Digest, ...]]]
"""The contents claimed for each key: none, one, or a contested several."""

Present = Callable[[Sequence[Digest]], AbstractSet[Digest]]
"""Which of these trees are here, complete."""

Contents = tuple[tuple[str, Digest], ...]
"""Sorted (output, content) pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """Nothing to do: the content is known, and its bytes are here or needed by nothing.

    Attributes:
        derivation: What would make it.
        name: The node's name.
        contents: Its outputs.
        reason: Why nothing needs to be done.
    """

    derivation: Digest
    name: str
    contents: Contents
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Substitute:
    """The content is known and is copied from a substituter.

    Attributes:
        derivation: What would make it.
        name: The node's name.
        contents: Its outputs.
        missing: The outputs whose bytes are to be copied.
        reason: Why they are needed.
    """

    derivation: Digest
    name: str
    contents: Contents
    missing: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """The step runs, unless an input's content turns out to be one that was built on before.

    Attributes:
        derivation: What is built.
        name: The node's name.
        contents: What its outputs are claimed to be, as far as is known: they are compared.
        reason: Why it must be built.
    """

    derivation: Digest
    name: str
    contents: Contents
    reason: str


Action = Reuse | Substitute | Build


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be done.

    Attributes:
        actions: One for each derivation that the wanted outputs reach, each after all it needs.
        resolved: The resolved digest of each derivation whose inputs' contents are known.
    """

    actions: tuple[Action, ...]
    resolved: Mapping[Digest, Digest] = field(hash=False)

    @property
    def contents(self) -> Mapping[OutputInput, Digest]:
        """The content of every output, as far as it is known."""
        return {
            OutputInput(derivation=action.derivation, output=output): content
            for action in self.actions
            for output, content in action.contents
        }

    @property
    def builds(self) -> tuple[Build, ...]:
        """The actions that run a step."""
        return tuple(action for action in self.actions if isinstance(action, Build))

    def to_value(self) -> list[dict[str, object]]:
        """The plan as a JSON array, in order."""
        return [
            {
                "action": type(action).__name__.lower(),
                "node": action.name,
                "derivation": str(action.derivation),
                "reason": action.reason,
                "contents": {output: str(content) for output, content in action.contents},
            }
            for action in self.actions
        ]


def plan(
    wanted: Sequence[OutputInput],
    *,
    derivations: Mapping[Digest, Derivation],
    lookup: Lookup,
    present: Present,
    substitutable: Present = lambda _: frozenset(),
    again: AbstractSet[Digest] = frozenset(),
) -> Plan:
    """What to do so that the bytes of every wanted output are here.

    Args:
        wanted: The outputs.
        derivations: Every derivation that they reach, by digest.
        lookup: The claims there are.
        present: What is here.
        substitutable: What a substituter offers.
        again: Derivations to build whatever is claimed: to check them.

    Returns:
        The same plan for the same answers, whatever the order of `derivations`.

    Raises:
        NotReproducibleError: Something that is needed has two contents, and is not in `again`.
    """
    levels = _levels(wanted, derivations)
    known = _Known(derivations=derivations, lookup=lookup, again=again)
    for level in levels:
        known.learn(level)
    order = [digest for level in levels for digest in level]
    trees = sorted({content for found in known.contents.values() for content in found.values()})
    here = present(trees)
    offered = substitutable([tree for tree in trees if tree not in here])
    chosen = _Choice(known=known, here=here, offered=offered, again=again)
    for want in wanted:
        chosen.need(want, "wanted")
    actions = [chosen.action(digest) for digest in reversed(order)]
    return Plan(actions=tuple(reversed(actions)), resolved=known.resolved)


def _levels(
    wanted: Sequence[OutputInput], derivations: Mapping[Digest, Derivation]
) -> list[list[Digest]]:
    """What `wanted` reaches, in levels: each derivation one above the highest it needs."""
    height: dict[Digest, int] = {}
    stack = [want.derivation for want in reversed(wanted)]
    while stack:
        digest = stack[-1]
        if digest in height:
            stack.pop()
            continue
        needs = [need.derivation for need in derivations[digest].needs]
        missing = [need for need in needs if need not in height]
        if missing:
            stack.extend(reversed(missing))
        else:
            stack.pop()
            height[digest] = 1 + max((height[need] for need in needs), default=-1)
    levels: list[list[Digest]] = [[] for _ in range(1 + max(height.values(), default=-1))]
    for digest, level in height.items():
        levels[level].append(digest)
    return levels


class _Known:
    """What claims and fixed digests tell of contents, filled level by level."""

    __slots__ = ("again", "contents", "contested", "derivations", "lookup", "resolved")

    def __init__(
        self,
        *,
        derivations: Mapping[Digest, Derivation],
        lookup: Lookup,
        again: AbstractSet[Digest],
    ) -> None:
        self.derivations = derivations
        self.lookup = lookup
        self.again = again
        self.contents: dict[Digest, dict[str, Digest]] = {}
        self.contested: dict[Digest, tuple[str, tuple[Digest, ...]]] = {}
        self.resolved: dict[Digest, Digest] = {}

    def learn(self, level: Sequence[Digest]) -> None:
        """Look up the derivations of one level, whose needs have been looked up."""
        keys: dict[Digest, list[Key]] = {}
        for digest in level:
            derivation = self.derivations[digest]
            self.contents[digest] = {
                name: one for name, one in derivation.outputs if one is not None
            }
            resolved = self._resolve(digest, derivation)
            if resolved is not None and not derivation.is_fixed:
                keys[digest] = [(resolved, name) for name, _ in derivation.outputs]
        claims = self.lookup([key for some in keys.values() for key in some]) if keys else {}
        for digest, some in keys.items():
            for key in some:
                self._claimed(digest, key[1], claims.get(key, ()))

    def _resolve(self, digest: Digest, derivation: Derivation) -> Digest | None:
        content: dict[OutputInput, Digest] = {}
        for need in derivation.needs:
            found = self.contents[need.derivation].get(need.output)
            if found is None:
                return None
            content[need] = found
        resolved = self.resolved[digest] = derivation.resolved_digest_with(content)
        return resolved

    def _claimed(self, digest: Digest, output: str, claims: tuple[Digest, ...]) -> None:
        if len(claims) == 1:
            self.contents[digest].setdefault(output, claims[0])
        elif claims:
            self.contested[digest] = output, claims


class _Choice:
    """Which action each derivation gets; those that need come before what they need."""

    __slots__ = ("again", "here", "known", "needed", "offered")

    def __init__(
        self,
        *,
        known: _Known,
        here: AbstractSet[Digest],
        offered: AbstractSet[Digest],
        again: AbstractSet[Digest],
    ) -> None:
        self.known = known
        self.here = here
        self.offered = offered
        self.again = again
        self.needed: dict[Digest, dict[str, str]] = {}

    def need(self, output: OutputInput, why: str) -> None:
        """Note that the bytes of `output` are needed."""
        self.needed.setdefault(output.derivation, {}).setdefault(output.output, why)

    def action(self, digest: Digest) -> Action:
        """What to do about `digest`, all that needs it having been asked."""
        derivation = self.known.derivations[digest]
        reason = self._why_build(digest)
        known = self.known.contents[digest]
        contents = tuple(sorted(known.items()))
        if reason is not None:
            for need in derivation.needs:
                self.need(need, f"needed by {derivation.name}")
            return Build(derivation=digest, name=derivation.name, contents=contents, reason=reason)
        needed = self.needed.get(digest, {})
        missing = tuple(sorted(name for name in needed if known[name] not in self.here))
        if missing:
            return Substitute(
                derivation=digest,
                name=derivation.name,
                contents=contents,
                missing=missing,
                reason=needed[missing[0]],
            )
        return Reuse(
            derivation=digest,
            name=derivation.name,
            contents=contents,
            reason="here" if needed else "not needed",
        )

    def _why_build(self, digest: Digest) -> str | None:
        """Why the step must run; None where it need not."""
        if digest in self.again:
            return "to be checked"
        known = self.known.contents[digest]
        for output in self.needed.get(digest, {}):
            if digest in self.known.contested:
                raise self._contested(digest)
            if output not in known:
                unknown = digest not in self.known.resolved
                return "an input is not known yet" if unknown else "never built"
            if known[output] not in self.here | self.offered:
                return "its bytes are gone" if not self._is_fixed(digest) else "not here yet"
        return None

    def _is_fixed(self, digest: Digest) -> bool:
        return self.known.derivations[digest].is_fixed

    def _contested(self, digest: Digest) -> NotReproducibleError:
        output, claims = self.known.contested[digest]
        name = self.known.derivations[digest].name
        return NotReproducibleError(
            f"{len(claims)} contents are claimed for one derivation",
            where=f"{name}.{output}",
            expected="one content",
            actual=", ".join(map(str, claims)),
            advice="`kolm build --check` builds it again; `kolm diff` compares the two.",
        )
