"""Why a build does what it does, told from two states of a project and what the store knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kolm_build.core.derivation import Derivation
from kolm_build.core.explain import Cause, Explanation, explain
from kolm_build.core.plan import Build
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.lookup import Look
from kolm_build.surfaces.memory import Builds, Remembered, recall

NEXT, LAST, FIRST = "next", "last", "first"

_SAME = ("cut-off", "reused")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What is told.

    Attributes:
        about: ``next`` (a build that would differ from the last), ``last`` (the last build, since
            nothing changed after it) or ``first`` (nothing was built yet).
        explanation: What changed.
        builds: The nodes that the next build would run, or may have to, and why.
        actions: What the last build did to each node; empty unless it is about that.
        node: The one node asked about; None for all.
        sources: Content to the local source that it came from.
    """

    about: str
    explanation: Explanation
    builds: Mapping[str, str]
    actions: Mapping[str, str]
    node: str | None
    sources: Mapping[str, str]

    def to_value(self) -> dict[str, object]:
        """The account as a JSON object."""
        return {
            "about": self.about,
            "actions": dict(self.actions),
            "builds": dict(self.builds),
            "node": self.node,
            **self.explanation.to_value(),
        }

    def lines(self) -> Iterator[str]:
        """The account for people."""
        yield self._title()
        causes = [cause for cause in self.explanation.causes if self._concerns(cause.node)]
        if not causes and not self.explanation.removed:
            yield "nothing changed"
        for cause in causes:
            yield from self._cause(cause)
        for name in self.explanation.removed if self.node is None else ():
            yield f"{name}: is no more"
        yield from self._consequences()

    def _title(self) -> str:
        """What the lines after it are about."""
        causes = self.explanation.causes
        follows = self.explanation.follows or self.explanation.removed
        if self.about == LAST and causes and not follows and all(one.is_new for one in causes):
            return "nothing changed since the last build, and none before it is known:"
        return _TITLES[self.about]

    def _cause(self, cause: Cause) -> Iterator[str]:
        done = f" ({self.actions[cause.node]})" if cause.node in self.actions else ""
        yield f"{cause.node}: {'is new' if cause.is_new else 'changed'}{done}"
        for change in cause.changes:
            source = self.sources.get(change.after or "")
            yield f"  {change}{f' ({source})' if source else ''}"

    def _concerns(self, cause: str) -> bool:
        if self.node is None or cause == self.node:
            return True
        return cause in self.explanation.follows.get(self.node, ())

    def _consequences(self) -> Iterator[str]:
        nodes = [name for name in self.explanation.follows if self.node in (None, name)]
        if self.about == LAST:
            ran = [name for name in nodes if self.actions.get(name, "reused") not in _SAME]
            spared = [name for name in nodes if name not in ran]
            if ran:
                yield f"so these were built: {', '.join(ran)}"
            if spared:
                yield f"same bytes came out, so these were not built again: {', '.join(spared)}"
        yield from self._to_build(nodes)

    def _to_build(self, following: list[str]) -> Iterator[str]:
        """What the next build would run; `following` may turn out to be spared."""
        run = [name for name in self.builds if self.node in (None, name)]
        if self.about == LAST:
            if run:
                yield f"not built yet: {', '.join(run)}"
            return
        if not run:
            yield "nothing to build: every result is here"
            return
        yield f"to build: {', '.join(run)}"
        below = [name for name in run if name in following]
        if below:
            yield f"unless the same bytes come out above: {', '.join(below)}"


def account_of(look: Look, store: LocalStore, *, node: str | None) -> Account:
    """What there is to tell of the project `look` looks at."""
    known = recall(look.project.lock_file, store)
    about, before, after = _states(look, known, store)
    builds = {
        action.name: action.reason
        for action in look.plan_targets(store).actions
        if isinstance(action, Build)
    }
    return Account(
        about=about,
        explanation=explain(before, after),
        builds=builds,
        actions=known.last.actions if about == LAST else {},
        node=node,
        sources={str(tree): source for tree, source in look.instance.contents.items()},
    )


def _states(
    look: Look, known: Builds, store: LocalStore
) -> tuple[str, Mapping[str, Derivation], Mapping[str, Derivation]]:
    """What to tell of, and the nodes before and after it."""
    now = look.instance.nodes
    if not known.last.nodes:
        return FIRST, {}, now
    if known.last.nodes != look.instance.digests:
        return NEXT, _nodes(known.last, store), now
    return LAST, _nodes(known.before, store), now


def _nodes(build: Remembered, store: LocalStore) -> Mapping[str, Derivation]:
    return build.derivations(store) or {}


_TITLES = {
    NEXT: "since the last build:",
    LAST: "nothing changed since the last build; it differed from the one before it:",
    FIRST: "nothing was built here yet:",
}
