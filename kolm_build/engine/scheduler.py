"""Realising what is wanted: the plan carried out, independent branches at once.

One thread a running node, at most `jobs` of them; this thread alone keeps the books. A failure
stops what needs the failed node and nothing else. ^C ends every step process and leaves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Lock, Thread

from kolm_build.core.closure import closure
from kolm_build.core.derivation import Derivation, OutputInput
from kolm_build.core.digest import Digest
from kolm_build.core.plan import Plan, Reuse, Substitute, plan
from kolm_build.engine.events import Event, Failed, OnEvent, Reused
from kolm_build.engine.protocol import Builder, Store, Substitutes
from kolm_build.engine.rebuilder import Contents, Mode, Rebuilder
from kolm_build.engine.substitution import Lookup, Substitution
from kolm_build.errors import KolmError

Derivations = Mapping[Digest, Derivation]

_SIGNAL_S = 0.5

NOT_NEEDED = "not needed"
"""The plan's reason for leaving something alone that nothing wanted rests on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Realised:
    """What came out.

    Attributes:
        contents: The content of every output that is known, wanted ones included.
        keys: Each derivation's resolved digest, as far as it was needed: the key of its
            realisations.
        actions: Derivation to ``reused``, ``substituted``, ``cut-off``, ``built``, ``fetched`` or
            ``verified``; those that nothing had to look at are left out.
    """

    contents: Mapping[OutputInput, Digest]
    keys: Mapping[Digest, Digest]
    actions: Mapping[Digest, str]


def realise(
    wanted: Sequence[OutputInput],
    *,
    derivations: Derivations,
    store: Store,
    builder: Builder,
    jobs: int = 1,
    on_event: OnEvent,
    mode: Mode = "reuse",
    substitutes: Substitutes | None = None,
) -> Realised:
    """Make every wanted output be in the store.

    Args:
        wanted: Outputs of derivations.
        derivations: Those and all they need, by digest.
        store: Where they are looked for and kept.
        builder: Runs what is missing.
        jobs: Steps that run at once.
        on_event: Told what happens; called by several threads, one at a time.
        mode: See `Mode`.
        substitutes: Who may have what is missing.

    Raises:
        KolmError: The first thing that could not be built, after all that does not need it is
            done; its exit bits are those of all failures.
        KeyboardInterrupt: As it came; every step process is gone.
    """
    tell = _OneAtATime(on_event)
    substitution = None
    if substitutes is not None:
        substitution = Substitution(store=store, substitutes=substitutes, on_event=tell)
    todo, copied = _substituted(wanted, derivations, store, mode, substitution)
    run = _Run(
        derivations=derivations,
        plan=todo,
        rebuilder=Rebuilder(
            store=store, builder=builder, on_event=tell, mode=mode, substitution=substitution
        ),
        contents=dict(todo.contents),
        keys=dict(todo.resolved),
        actions=dict.fromkeys(copied, "substituted"),
    )
    run.reuse()
    run.build(jobs)
    return Realised(contents=run.contents, keys=run.keys, actions=run.actions)


def _substituted(
    wanted: Sequence[OutputInput],
    derivations: Derivations,
    store: Store,
    mode: Mode,
    substitution: Substitution | None,
) -> tuple[Plan, set[Digest]]:
    """The plan of what is left once all was copied that can be; and what was copied.

    What a substituter offers and then cannot give is planned anew: it is built, and for that other
    things may be needed.
    """
    copied: set[Digest] = set()
    while True:
        todo = plan_for(
            wanted,
            derivations=derivations,
            store=store,
            mode=mode,
            substitutes=None if substitution is None else substitution.substitutes,
        )
        if substitution is None:
            return todo, copied
        wishes = [action for action in todo.actions if isinstance(action, Substitute)]
        done = {action.derivation for action in wishes if substitution.carry_out(action)}
        copied |= done
        if len(done) == len(wishes):
            for digest, resolved in todo.resolved.items():
                substitution.substitutes.keep(resolved, digest)
            return todo, copied


def plan_for(
    wanted: Sequence[OutputInput],
    *,
    derivations: Derivations,
    store: Store,
    mode: Mode = "reuse",
    substitutes: Substitutes | None = None,
) -> Plan:
    """What `realise` will do; what it counts on is kept from the collector from here on."""
    return plan(
        wanted,
        derivations=derivations,
        lookup=Lookup(store, substitutes),
        present=store.pin,
        substitutable=nothing_offered if substitutes is None else substitutes.offered,
        again=_again(wanted, derivations, mode),
    )


def nothing_offered(_: Sequence[Digest]) -> frozenset[Digest]:
    """What nobody offers."""
    return frozenset()


def _again(wanted: Sequence[OutputInput], derivations: Derivations, mode: Mode) -> set[Digest]:
    """What is built even if it is there: all, or all that no digest in the lock fixes."""
    if mode == "reuse":
        return set()
    needed = closure(
        (one.derivation for one in wanted),
        lambda digest: [need.derivation for need in derivations[digest].needs],
    )
    return {one for one in needed if mode == "rebuild" or not derivations[one].is_fixed}


class _OneAtATime:
    """Events from several threads, one after another."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._lock = Lock()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._on_event(event)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finished:
    """What a thread reports: the contents and how they came, or what went wrong."""

    node: Digest
    contents: Contents
    how: str
    error: BaseException | None


@dataclass(slots=True, kw_only=True)
class _Run:
    """The books of one call; touched by the calling thread alone."""

    derivations: Derivations
    plan: Plan
    rebuilder: Rebuilder
    contents: dict[OutputInput, Digest]
    keys: dict[Digest, Digest]
    actions: dict[Digest, str] = field(default_factory=dict)
    errors: list[KolmError] = field(default_factory=list)
    finished: SimpleQueue[_Finished] = field(default_factory=SimpleQueue)

    def reuse(self) -> None:
        """Tell of what is there and needed."""
        for action in self.plan.actions:
            is_needed = isinstance(action, Reuse) and action.reason != NOT_NEEDED
            if is_needed and action.derivation not in self.actions:
                self.actions[action.derivation] = "reused"
                found = dict(action.contents)
                self.rebuilder.on_event(Reused(node=action.name, contents=found))

    def build(self, jobs: int) -> None:
        """Build what is not there, at most `jobs` at once."""
        builds = [action.derivation for action in self.plan.builds]
        waits, frees = self._graph(builds)
        ready = deque(digest for digest in builds if not waits[digest])
        running: dict[Digest, Thread] = {}
        try:
            while ready or running:
                while ready and len(running) < jobs:
                    digest = ready.popleft()
                    running[digest] = self._start(digest)
                done = self._next()
                running.pop(done.node).join()
                if self._take(done):
                    for freed in frees[done.node]:
                        waits[freed].discard(done.node)
                        if not waits[freed]:
                            ready.append(freed)
        except BaseException:
            # Threads that wait for a lock are left behind: they would find the builder stopped.
            self.rebuilder.builder.stop()
            raise
        if self.errors:
            raise _all_in_one(self.errors)

    def _next(self) -> _Finished:
        """What a thread reports next.

        A signal that another thread receives, or that arrives while this one is about to wait,
        does not end the wait: Python acts on it only once this thread runs again.
        """
        while True:
            with suppress(Empty):
                return self.finished.get(timeout=_SIGNAL_S)

    def _graph(
        self, builds: Sequence[Digest]
    ) -> tuple[dict[Digest, set[Digest]], dict[Digest, list[Digest]]]:
        """For each node to build: those it waits for, and those that wait for it."""
        waits: dict[Digest, set[Digest]] = {}
        frees: dict[Digest, list[Digest]] = {digest: [] for digest in builds}
        for digest in builds:
            needs = {need.derivation for need in self.derivations[digest].needs}
            waits[digest] = {need for need in needs if need in frees}
            for need in waits[digest]:
                frees[need].append(digest)
        return waits, frees

    def _start(self, digest: Digest) -> Thread:
        derivation = self.derivations[digest]
        resolved = derivation.resolve(self.contents)
        self.keys[digest] = resolved.resolved_digest

        def work() -> None:
            contents: Contents = {}
            how, error = "", None
            try:
                contents, how = self.rebuilder.realise(derivation, resolved)
            except BaseException as caught:  # noqa: BLE001  # handed to the calling thread
                error = caught
            done = _Finished(node=digest, contents=contents, how=how, error=error)
            self.finished.put(done)

        # A daemon, because waiting for another process's lock cannot be interrupted.
        thread = Thread(target=work, name=derivation.name, daemon=True)
        thread.start()
        return thread

    def _take(self, done: _Finished) -> bool:
        """Enter what a thread reports; whether the node is there now."""
        if isinstance(done.error, KolmError):
            self.errors.append(done.error)
            name = self.derivations[done.node].name
            failed = Failed(node=name, derivation=done.node, error=done.error)
            self.rebuilder.on_event(failed)
            return False
        if done.error is not None:
            raise done.error
        self.actions[done.node] = done.how
        for output, content in done.contents.items():
            self.contents[OutputInput(derivation=done.node, output=output)] = content
        return True


def _all_in_one(errors: Sequence[KolmError]) -> KolmError:
    """The first error, with the exit bits of all."""
    first = errors[0]
    bits = first.exit
    for error in errors[1:]:
        bits |= error.exit
    first.exit = bits  # type: ignore[misc]  # this one stands for all of them
    return first
