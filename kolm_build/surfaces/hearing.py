"""What is claimed of a project's outputs, in the store and at substituters; nothing is believed.

To ask for the claims on an output, its derivation has to be resolved, so the contents of all that
it needs have to be known first: those that the store or everybody names, or the policy would use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kolm_build.core.closure import closure
from kolm_build.core.derivation import Derivation, OutputInput
from kolm_build.core.digest import Digest
from kolm_build.errors import KolmError, NetworkError
from kolm_build.store.claims import StoredRealisation
from kolm_build.store.remote.place import Limits, Place
from kolm_build.store.remote.publish import check_format, read_claims
from kolm_build.surfaces.substituting import verdict_of

if TYPE_CHECKING:
    from kolm_build.attest.trust import TrustPolicy
    from kolm_build.core.instantiation.instance import Instance
    from kolm_build.core.quorum import Verdict
    from kolm_build.store.local import LocalStore

STORE = "the store"

OnTrouble = Callable[[str, KolmError], None]
"""Told the address of a place and what is wrong with it."""

Ask = Callable[[Digest, str], Iterable[StoredRealisation]]
"""The claims about an output of a resolved derivation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """What is claimed of one output.

    Attributes:
        name: Its label, such as ``train-1.trace``.
        output: The output.
        fixed: Its content, where the lock fixes it.
        resolved: The resolved derivation; None where an input's content is not known.
        unknown: Which inputs that are.
        claims: Where each claim was found, and the claim.
    """

    name: str
    output: OutputInput
    fixed: Digest | None
    resolved: Digest | None
    unknown: tuple[str, ...]
    claims: tuple[tuple[str, StoredRealisation], ...]

    def at(self, source: str) -> tuple[StoredRealisation, ...]:
        """The claims that were found at `source`."""
        return tuple(claim for place, claim in self.claims if place == source)

    @property
    def contents(self) -> tuple[Digest, ...]:
        """The distinct contents that anybody claims, sorted."""
        return tuple(sorted({claim.realisation.content for _, claim in self.claims}))

    def verdict(self, trust: TrustPolicy) -> Verdict:
        """What the policy makes of the claims."""
        return verdict_of(merged(claim for _, claim in self.claims), trust)

    def rivals_here(self, verdict: Verdict) -> tuple[Digest, ...]:
        """The contents of the store's own claims, signed or not, that others contradict."""
        here = {claim.realisation.content for claim in self.at(STORE)}
        said = here | set(map(Digest.parse, verdict.counts))
        return tuple(sorted(here)) if len(said) > 1 else ()

    def known(self, trust: TrustPolicy | None) -> Digest | None:
        """The content to go on with: that of the store, of everybody, or of the policy."""
        if self.fixed is not None:
            return self.fixed
        here = {claim.realisation.content for claim in self.at(STORE)}
        for contents in (here, set(self.contents)):
            if len(contents) == 1:
                return contents.pop()
        usable = None if trust is None else self.verdict(trust).usable
        return None if usable is None else Digest.parse(usable)


def merged(claims: Iterable[StoredRealisation]) -> list[StoredRealisation]:
    """Each claim once, with all that anybody knows of it."""
    found: dict[bytes, StoredRealisation] = {}
    for claim in claims:
        bare = replace(claim, evidence=()).encode()
        found[bare] = found[bare].with_evidence(*claim.evidence) if bare in found else claim
    return list(found.values())


def claims_of_store(store: LocalStore) -> Ask:
    """The claims that a store has."""
    return store.realisations


def claims_of_place(place: Place, limits: Limits, on_trouble: OnTrouble) -> Ask:
    """The claims that a substituter has; one that fails is told of once, and has none then."""
    asked: dict[Digest, tuple[StoredRealisation, ...]] = {}
    down: list[KolmError] = []

    def read(resolved: Digest) -> tuple[StoredRealisation, ...]:
        if down:
            return ()
        try:
            if not asked and not check_format(place, limits):
                raise NetworkError("no substituter is there", file=place.url)
            return read_claims(place, resolved, limits)
        except KolmError as error:
            down.append(error)
            on_trouble(place.url, error)
            return ()

    def ask(resolved: Digest, output: str) -> Iterator[StoredRealisation]:
        if resolved not in asked:
            asked[resolved] = read(resolved)
        return (claim for claim in asked[resolved] if claim.realisation.output == output)

    return ask


@dataclass(frozen=True, slots=True, kw_only=True)
class Hearing:
    """Who is asked.

    Attributes:
        instance: The project's derivations.
        sources: Names, and whom to ask, in order.
        trust: Whose word settles which content to go on with, where several are claimed.
    """

    instance: Instance
    sources: Sequence[tuple[str, Ask]]
    trust: TrustPolicy | None

    def hear(self, wanted: Iterable[OutputInput]) -> list[Claimed]:
        """What is claimed of `wanted` and of all they are made from, each after what it needs."""
        nodes = self.instance.derivations
        reached = set(
            closure(
                (one.derivation for one in wanted),
                lambda digest: [need.derivation for need in nodes[digest].needs],
            )
        )
        known: dict[OutputInput, Digest] = {}
        found = []
        for digest in (one for one in nodes if one in reached):
            for claimed in self._outputs(digest, nodes[digest], known):
                content = claimed.known(self.trust)
                if content is not None:
                    known[claimed.output] = content
                found.append(claimed)
        return found

    def _outputs(
        self, digest: Digest, derivation: Derivation, known: Mapping[OutputInput, Digest]
    ) -> list[Claimed]:
        unknown = tuple(self._label(need) for need in derivation.needs if need not in known)
        resolved = None if unknown else derivation.resolved_digest_with(known)
        return [
            Claimed(
                name=self._label(output),
                output=output,
                fixed=fixed,
                resolved=resolved,
                unknown=unknown,
                claims=self._claims(resolved, output.output) if fixed is None else (),
            )
            for name, fixed in derivation.outputs
            for output in [OutputInput(derivation=digest, output=name)]
        ]

    def _claims(
        self, resolved: Digest | None, output: str
    ) -> tuple[tuple[str, StoredRealisation], ...]:
        if resolved is None:
            return ()
        return tuple((name, claim) for name, ask in self.sources for claim in ask(resolved, output))

    def _label(self, output: OutputInput) -> str:
        return f"{self.instance.derivations[output.derivation].name}.{output.output}"
