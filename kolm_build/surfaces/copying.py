"""Copying what a project's nodes are between its store and a substituter.

A tree that is named by its digest needs no project; what only projects and claims need is imported
there, since it takes longer than many a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kolm_build.core.closure import closure
from kolm_build.core.derivation import OutputInput
from kolm_build.core.digest import Digest
from kolm_build.core.plan import Build, Plan, Substitute, plan
from kolm_build.core.quorum import COPIED
from kolm_build.engine.events import Event, OnEvent, Progress, Substituted
from kolm_build.engine.joblog import LOG
from kolm_build.errors import MissingObjectError, NoSandboxError
from kolm_build.store.claims import StoredRealisation
from kolm_build.store.remote.place import Limits, Place
from kolm_build.store.remote.publish import Publisher

if TYPE_CHECKING:
    from kolm_build.attest.keys import SigningKey
    from kolm_build.core.instantiation.instance import Instance
    from kolm_build.core.realisation import Realisation
    from kolm_build.store.local import LocalStore
    from kolm_build.store.remote.substitutes import Substitutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """A tree that is there now.

    Attributes:
        name: What it was asked for as.
        tree: Its digest.
        bytes_copied: How many bytes went; 0 where all was there.
    """

    name: str
    tree: Digest
    bytes_copied: int

    def to_value(self) -> dict[str, object]:
        """The event as a JSON object."""
        return {
            "event": "copied",
            "target": self.name,
            "tree": str(self.tree),
            "bytes": self.bytes_copied,
        }


def wanted_outputs(
    instance: Instance, targets: Sequence[str], *, closure_too: bool
) -> Mapping[str, OutputInput]:
    """The outputs that `targets` name, by label; the recipe's own where there are none.

    Args:
        instance: The project's derivations.
        targets: Nodes, which mean all their outputs, and outputs.
        closure_too: With every output of everything they are made from.
    """
    from kolm_build.surfaces.lookup import find_output

    some = [find_output(instance, text) for text in targets] or list(instance.targets.values())
    names = [text if text in instance.nodes else "" for text in targets] or [""] * len(some)
    found = {}
    for one, name in zip(some, names, strict=True):
        outputs = _outputs(instance, one.derivation) if name else [one]
        found.update({_label(instance, each): each for each in outputs})
    if closure_too:
        for digest in _reached(instance, some):
            found.update({_label(instance, one): one for one in _outputs(instance, digest)})
    return found


def _outputs(instance: Instance, digest: Digest) -> list[OutputInput]:
    return [
        OutputInput(derivation=digest, output=output)
        for output, _ in instance.derivations[digest].outputs
    ]


def _label(instance: Instance, one: OutputInput) -> str:
    name = instance.derivations[one.derivation].name
    return name if one.output == "out" else f"{name}.{one.output}"


def _reached(instance: Instance, outputs: Iterable[OutputInput]) -> tuple[Digest, ...]:
    return closure(
        (one.derivation for one in outputs),
        lambda digest: [need.derivation for need in instance.derivations[digest].needs],
    )


class Sender:
    """Publishes from a store.

    Args:
        store: The store.
        place: Where to.
        limits: How patient to be.
        on_event: Told how far it is.
    """

    def __init__(
        self, store: LocalStore, place: Place, *, limits: Limits, on_event: OnEvent
    ) -> None:
        from kolm_build.store.remote.substitutes import JOBS

        self._store = store
        self._on_event = on_event
        self._name = ""
        self._publisher = Publisher(
            place, store.giver(), limits=limits, jobs=JOBS, on_bytes=self._tell
        )
        self._publisher.begin()

    def tree(self, name: str, tree: Digest) -> Copied:
        """Copy a tree.

        Raises:
            MissingObjectError: It is not in the store.
        """
        self._name = name
        self._store.pin([tree])
        return Copied(name=name, tree=tree, bytes_copied=self._publisher.tree(tree))

    def claims(
        self, instance: Instance, wanted: Iterable[OutputInput], key: SigningKey | None
    ) -> None:
        """Copy what is known of `wanted` and of all that they are made from, signed by `key`."""
        from kolm_build.surfaces.substituting import signed

        reached = _reached(instance, wanted)
        known = known_plan(instance, reached, self._store)
        for digest in reached:
            derivation = instance.derivations[digest]
            resolved = known.resolved.get(digest)
            if derivation.is_fixed or resolved is None:
                continue
            claims = [
                claim
                for output, _ in derivation.outputs
                for claim in self._publishable(derivation.name, resolved, output)
            ]
            for claim in claims:
                self._record_of(claim)
            # Unsigned claims are those of builds here, unless a pack brought them.
            own = [claim for claim in claims if not claim.is_delivered]
            shown = [claim.bare() for claim in claims]
            signatures = [signed(claim, key) for claim in (own if key else shown)]
            copies = _copies(shown, own, digest, key)
            self._publisher.claims(resolved, [*signatures, *copies])

    def _publishable(self, name: str, resolved: Digest, output: str) -> list[StoredRealisation]:
        """The claims of a build closed in, or signed by another.

        Raises:
            NoSandboxError: It was only ever built openly.
        """
        from kolm_build.engine.builder import OPEN_LEVEL

        claims = self._store.realisations(resolved, output)
        levels = {claim.circumstances.get("sandbox") for claim in claims if claim.envelope is None}
        fit = [
            claim
            for claim in claims
            if claim.envelope is not None
            or claim.circumstances.get("sandbox") not in (None, OPEN_LEVEL)
        ]
        if not fit and OPEN_LEVEL in levels:
            raise NoSandboxError(
                "what was built without a sandbox is not published",
                where=f"{name}.{output}",
                advice="`kolm build --check --sandbox=require` builds it again, closed in.",
            )
        return fit

    def _record_of(self, claim: StoredRealisation) -> None:
        if self._store.has_derivation(claim.derivation):
            self._publisher.record(claim.derivation)
        log = claim.circumstances.get(LOG)
        if isinstance(log, str):
            try:
                data = self._store.read_log(Digest.parse(log))
            except MissingObjectError:
                return  # a substituter gave the claim and not the log
            self._publisher.log(Digest.parse(log), data)

    def _tell(self, done: int, total: int) -> None:
        self._on_event(Progress(node=self._name, done=done, total=total, unit="byte"))


def _copies(
    claims: Sequence[StoredRealisation],
    own: Sequence[StoredRealisation],
    derivation: Digest,
    key: SigningKey | None,
) -> list[StoredRealisation]:
    """What `key` says of outputs that were never built here: that they were copied."""
    from kolm_build.surfaces.substituting import signed

    outputs = {claim.realisation for claim in claims}
    built = {claim.realisation for claim in own if _is_by(claim, key)}
    return [
        signed(
            StoredRealisation(
                realisation=fact,
                derivation=derivation,
                circumstances={COPIED: _first_digest(claims, fact)},
            ),
            key,
            COPIED,
        )
        for fact in sorted(outputs - built)
        if key is not None
    ]


def _is_by(claim: StoredRealisation, key: SigningKey | None) -> bool:
    """Whether a claim is unsigned, so of a build here, or signed by `key`."""
    from kolm_build.attest.envelope import Envelope

    if claim.envelope is None or key is None:
        return True
    signatures = Envelope.decode(claim.envelope).signatures
    return any(signature.keyid == key.public.keyid for signature in signatures)


def _first_digest(claims: Iterable[StoredRealisation], fact: Realisation) -> str:
    same = [claim.encode() for claim in claims if claim.realisation == fact]
    return str(Digest.of_blob(min(same)))


def known_plan(instance: Instance, reached: Iterable[Digest], store: LocalStore) -> Plan:
    """What `store` knows of every output of the derivations `reached`.

    Raises:
        NotReproducibleError: One of them is contested.
    """
    outputs = [one for digest in reached for one in _outputs(instance, digest)]
    return plan(
        outputs,
        derivations=instance.derivations,
        lookup=store.contents_of,
        present=store.has_trees,
    )


def known_contents(
    instance: Instance, wanted: Mapping[str, OutputInput], store: LocalStore
) -> Mapping[str, Digest]:
    """What `store` knows `wanted` to be, by label.

    Raises:
        MissingObjectError: Something was never built here.
        NotReproducibleError: Something is contested.
    """
    reached = _reached(instance, wanted.values())
    contents = known_plan(instance, reached, store).contents
    unknown = [name for name, one in wanted.items() if one not in contents]
    if unknown:
        raise MissingObjectError(
            "it was never built here", where=", ".join(unknown), advice="`kolm build` builds it."
        )
    return {name: contents[one] for name, one in wanted.items()}


def receive(
    instance: Instance,
    wanted: Mapping[str, OutputInput],
    store: LocalStore,
    substitutes: Substitutes,
    *,
    on_event: OnEvent,
) -> list[Copied]:
    """Have `wanted` be in the store without building anything.

    Raises:
        MissingObjectError: Something is not here, and no substituter has it.
        NotReproducibleError: Something is contested.
    """
    from kolm_build.engine.scheduler import plan_for
    from kolm_build.engine.substitution import Substitution

    came: dict[str, int] = {}

    def count(event: Event) -> None:
        if isinstance(event, Substituted):
            came[event.node] = came.get(event.node, 0) + event.bytes_fetched
        on_event(event)

    substitution = Substitution(store=store, substitutes=substitutes, on_event=count)
    while True:
        todo = plan_for(
            tuple(wanted.values()),
            derivations=instance.derivations,
            store=store,
            substitutes=substitutes,
        )
        contents = todo.contents
        absent = [name for name, one in wanted.items() if _is_built(todo, one)]
        if absent:
            raise _nowhere(absent, contents, wanted)
        wishes = [action for action in todo.actions if isinstance(action, Substitute)]
        done = [action for action in wishes if substitution.carry_out(action)]
        if len(done) == len(wishes):
            break
    for digest, resolved in todo.resolved.items():
        store.put_derivation(instance.derivations[digest])
        substitutes.keep(resolved, digest)
    names = {name: instance.derivations[one.derivation].name for name, one in wanted.items()}
    return [
        Copied(name=name, tree=contents[one], bytes_copied=came.pop(names[name], 0))
        for name, one in wanted.items()
    ]


def _is_built(todo: Plan, one: OutputInput) -> bool:
    return any(
        isinstance(action, Build) and action.derivation == one.derivation for action in todo.actions
    )


def _nowhere(
    absent: Sequence[str], contents: Mapping[OutputInput, Digest], wanted: Mapping[str, OutputInput]
) -> MissingObjectError:
    known = [name for name in absent if wanted[name] in contents]
    reason = (
        "no substituter can give the bytes" if known else "no claim that you trust says what it is"
    )
    return MissingObjectError(
        reason,
        where=", ".join(known or absent),
        advice="`kolm build` builds it; `kolm key trust` adds whom you trust.",
    )


def receive_tree(
    tree: Digest, store: LocalStore, substitutes: Substitutes, *, on_event: OnEvent
) -> Copied:
    """Have a tree be in the store.

    Raises:
        MissingObjectError: It is not here, and no substituter has it.
    """
    if store.pin([tree]):
        return Copied(name=str(tree), tree=tree, bytes_copied=0)

    def tell(done: int, total: int) -> None:
        on_event(Progress(node=str(tree), done=done, total=total, unit="byte"))

    arrived = substitutes.fetch(tree, tell)
    if arrived is None:
        raise MissingObjectError("no substituter has this tree", expected=str(tree))
    return Copied(name=str(tree), tree=tree, bytes_copied=arrived.bytes_fetched)
