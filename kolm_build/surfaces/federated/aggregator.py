"""The aggregator: it opens rounds, brings updates together, and sees no row.

Sites are asked all at once and heard one after the other. Everything is put in the order of their
names before anything is made of it, so the order in which they answer decides nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kolm_build.attest.keys import PublicKey
from kolm_build.attest.rounds import KeyPair, commitment, open_message, pair_seed, sign_message
from kolm_build.core import cbor, strict_json
from kolm_build.core.derivation import Derivation
from kolm_build.core.digest import Digest
from kolm_build.core.federated import shamir
from kolm_build.core.federated.plan import FACTORING, FederationPlan
from kolm_build.core.federated.round import FILE, NONCE_BYTES, Opening, Round, Site
from kolm_build.core.federated.sealed import KEYS, Unsealing
from kolm_build.core.federated.submission import Submission, check_submission
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError, KolmError, RoundError, SubmissionError
from kolm_build.store.claims import StoredRealisation
from kolm_build.surfaces.federated.checking import read_bytes, read_claim, read_tree
from kolm_build.surfaces.federated.site import (
    check_advert,
    check_signed_survivors,
    check_survivors,
)
from kolm_build.surfaces.federated.wire import Link
from kolm_build.surfaces.federated.workshop import Workshop
from kolm_build.surfaces.files import write_whole
from kolm_build.surfaces.trees import Files, digest_of, keep

Nonce = Callable[[], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What is told of a round.

    Attributes:
        summary: What the aggregating step says: sites, rows, norm, privacy loss.
        refused: Site to why it fell out.
        correct: Held-out rows that are right, of all sites that answered.
        judged: How many held-out rows they have.
        adapter: Content of the new adapter.
    """

    summary: Mapping[str, object]
    refused: Mapping[str, KolmError]
    correct: int
    judged: int
    adapter: Digest


@dataclass(slots=True, kw_only=True)
class _Heard:
    """What the sites have said in the round that runs."""

    links: Mapping[str, Link]
    refused: dict[str, KolmError] = field(default_factory=dict)

    def ask(self, bodies: Mapping[str, Mapping[str, object]], kind: str) -> dict[str, Fields]:
        """Ask each of these sites; the answers of those that gave one, by name."""
        for name in sorted(bodies):
            with self._guarded(name):
                self.links[name].send(kind, **bodies[name])
        answers: dict[str, Fields] = {}
        for name in sorted(bodies):
            if name not in self.refused:
                with self._guarded(name):
                    answers[name] = self.links[name].receive()
        return answers

    def checked(
        self, answers: Mapping[str, Fields], check: Callable[[str, Fields], None]
    ) -> list[str]:
        """The sites whose answer `check` does not refuse."""
        for name in sorted(answers):
            with self._guarded(name):
                check(name, answers[name])
        return [name for name in sorted(answers) if name not in self.refused]

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """A site that fails inside the block is out of the round."""
        try:
            yield
        except KolmError as error:
            self.refused[name] = error


class Aggregator:
    """The aggregator of one federation.

    Args:
        workshop: Where it builds.
        plan: What the federation has agreed on.
        peers: The keys of the sites it knows, by name.
        base: The base model's files.
        start: The files of the adapter and of the state that it starts from.
        memory: The file that tells how far it came; it goes on from there.
        nonce: Gives 32 bytes that no round has had; random, but for tests of those who reuse one.
    """

    def __init__(
        self,
        *,
        workshop: Workshop,
        plan: FederationPlan,
        peers: Mapping[str, PublicKey],
        base: Digest,
        start: Mapping[str, Files],
        memory: Path,
        nonce: Nonce = lambda: os.urandom(NONCE_BYTES),
    ) -> None:
        self._workshop = workshop
        self._plan = plan
        self._peers = peers
        self._base = base
        self._adapter, self._state = start["adapter"], start["state"]
        self._nonce = nonce
        self._previous: Digest | None = None
        self._number = 1
        self._memory = memory
        self._remember()

    def round(self, links: Mapping[str, Link]) -> Told:
        """Run a round with the sites behind `links`.

        Raises:
            RoundError: Too few sites are left; the error tells why each fell out.
        """
        heard = _Heard(links=links)
        opening = self._opening()
        record, adverts = self._join(heard, opening)
        shares = self._pass_shares(heard, record, adverts)
        handed = self._collect(heard, record, shares)
        unsealing = self._unseal(heard, record, shares, handed)
        return self._finish(heard, record, handed, unsealing)

    def _opening(self) -> Opening:
        return Opening(
            number=self._number,
            nonce=self._nonce(),
            previous=self._previous,
            base=self._base,
            adapter=keep(self._adapter, self._workshop.store),
            state=keep(self._state, self._workshop.store),
            plan=self._plan,
        )

    def _join(self, heard: _Heard, opening: Opening) -> tuple[Round, Mapping[str, bytes]]:
        """The round's record, and each site's signed word that it takes part."""
        said = {"opening": opening.encode()}
        body = {
            "opening": sign_message("open", said, self._workshop.key),
            "adapter": dict(self._adapter),
            "state": dict(self._state),
        }
        answers = heard.ask(dict.fromkeys(heard.links, body), "open")
        sites: dict[str, Site] = {}
        adverts: dict[str, bytes] = {}

        def check(name: str, answer: Fields) -> None:
            envelope = answer.take("advert", bytes)
            site = self._advertised(name, envelope)
            check_advert(envelope, opening, site, self._peers[name])
            sites[name], adverts[name] = site, envelope

        names = heard.checked(answers, check)
        enough = max(2, opening.plan.threshold)
        self._enough(heard, names, enough, "joined")
        record = Round(opening=opening, sites=tuple(sites[name] for name in names))
        return record, adverts

    def _advertised(self, name: str, envelope: bytes) -> Site:
        if name not in self._peers:
            raise SubmissionError(
                "a site with an unknown key",
                where=name,
                expected="one of " + ", ".join(sorted(self._peers)),
            )
        said = open_message(envelope, "advert", self._peers[name], who=name)
        return Site.from_value(said.table("site"))

    def _enough(self, heard: _Heard, names: Sequence[str], least: int, did: str) -> None:
        if len(names) >= least:
            return
        reasons = "; ".join(f"{name}: {error.reason}" for name, error in heard.refused.items())
        error = RoundError(
            f"too few sites {did}",
            where=f"round {self._number}",
            expected=f"{least} or more",
            actual=f"{len(names)}" + (f" ({reasons})" if reasons else ""),
            advice="Open the round again, with a new nonce, when more sites can answer.",
        )
        raise error from next(iter(heard.refused.values()), None)

    def _pass_shares(
        self, heard: _Heard, record: Round, adverts: Mapping[str, bytes]
    ) -> Mapping[str, Mapping[str, bytes]]:
        """Receiver to sender to the sealed shares, of the sites that sent all of theirs."""
        body = {"round": record.encode(), "adverts": dict(adverts)}
        answers = heard.ask({site.name: body for site in record.sites}, "round")
        sent: dict[str, Mapping[str, bytes]] = {}
        everybody = {site.name for site in record.sites}

        def check(name: str, answer: Fields) -> None:
            shares = read_bytes(answer, "shares")
            wanted = everybody - {name} if record.plan.masks else set()
            if shares.keys() != wanted:
                raise SubmissionError("not a share for each other site", where=name)
            sent[name] = shares

        names = heard.checked(answers, check)
        self._enough(heard, names, record.plan.threshold, "sent shares")
        return {
            receiver: {
                sender: sent[sender][receiver]
                for sender in names
                if sender != receiver and record.plan.masks
            }
            for receiver in names
        }

    def _collect(
        self, heard: _Heard, record: Round, shares: Mapping[str, Mapping[str, bytes]]
    ) -> Mapping[str, Digest]:
        """Site to the content of what it handed in, now in the aggregator's store."""
        bodies = {name: {"shares": dict(for_it)} for name, for_it in shares.items()}
        answers = heard.ask(bodies, "shares")
        round_content = digest_of({FILE: record.encode()})
        handed: dict[str, Digest] = {}

        def check(name: str, answer: Fields) -> None:
            handed[name] = self._handed_in(name, answer, record, round_content)

        names = heard.checked(answers, check)
        self._enough(heard, names, record.plan.threshold, "handed in an update")
        return {name: handed[name] for name in names}

    def _handed_in(self, name: str, answer: Fields, record: Round, round_content: Digest) -> Digest:
        """The content of what crosses, checked against the round, kept with its claims."""
        key = self._peers[name]
        update = Derivation.decode(answer.take("update", bytes))
        claims: dict[str, StoredRealisation] = {
            output: read_claim(answer.take(f"{output}_claim", bytes), key, update, output, name)
            for output in ("update", "card")
        }
        contents = {output: claim.realisation.content for output, claim in claims.items()}
        seal, crossing = None, "update"
        if record.plan.method not in FACTORING:
            seal, crossing = Derivation.decode(answer.take("seal", bytes)), "sealed"
            claims[crossing] = read_claim(answer.take("seal_claim", bytes), key, seal, "out", name)
            contents[crossing] = claims[crossing].realisation.content
        card = read_tree(answer, "card", contents["card"], name)
        given = Submission(
            site=name, update=update, seal=seal, contents=contents, card=card["card.json"]
        )
        check_submission(given, record, round_content)
        files = read_tree(answer, "files", contents[crossing], name)
        self._keep(files, claims, [update, *([seal] if seal else [])])
        return contents[crossing]

    def _keep(
        self,
        files: Files,
        claims: Mapping[str, StoredRealisation],
        derivations: Sequence[Derivation],
    ) -> None:
        store = self._workshop.store
        keep(files, store)
        for derivation in derivations:
            store.put_derivation(derivation)
        for claim in claims.values():
            store.add_claim(claim)

    def _unseal(
        self,
        heard: _Heard,
        record: Round,
        shares: Mapping[str, Mapping[str, bytes]],
        handed: Mapping[str, Digest],
    ) -> Unsealing:
        names = tuple(sorted(handed))
        check_survivors(names, record)
        if not record.plan.masks:
            return Unsealing(survivors=names, own={}, pairs={})
        signatures = self._agree(heard, record, names)
        body = {"signatures": signatures}
        answers = heard.ask(dict.fromkeys(signatures, body), "unmask")
        told: dict[str, tuple[Mapping[str, bytes], Mapping[str, bytes]]] = {}

        def check(name: str, answer: Fields) -> None:
            told[name] = (read_bytes(answer, "own"), read_bytes(answer, "masks"))

        helping = heard.checked(answers, check)
        self._enough(heard, helping, record.plan.threshold, "helped to unmask")
        numbered = {record.number_of(name): told[name] for name in helping}
        own = {
            name: _own_seed(record, name, {k: v[0].get(name) for k, v in numbered.items()})
            for name in names
        }
        fallen = [name for name in sorted(shares) if name not in names]
        pairs = {
            gone: _pair_seeds(record, gone, names, {k: v[1].get(gone) for k, v in numbered.items()})
            for gone in fallen
        }
        return Unsealing(survivors=names, own=own, pairs=pairs)

    def _agree(self, heard: _Heard, record: Round, names: tuple[str, ...]) -> dict[str, bytes]:
        """Each site's signature under the list of those who stayed."""
        body = {"survivors": list(names)}
        answers = heard.ask(dict.fromkeys(names, body), "survivors")
        signatures: dict[str, bytes] = {}

        def check(name: str, answer: Fields) -> None:
            envelope = answer.take("signed", bytes)
            check_signed_survivors(envelope, record, names, self._peers[name])
            signatures[name] = envelope

        agreed = heard.checked(answers, check)
        self._enough(heard, agreed, record.plan.threshold, "agreed on who stayed")
        return {name: signatures[name] for name in agreed}

    def _finish(
        self,
        heard: _Heard,
        record: Round,
        handed: Mapping[str, Digest],
        unsealing: Unsealing,
    ) -> Told:
        store, opening = self._workshop.store, record.opening
        inputs = {
            "round": keep({FILE: record.encode()}, store),
            "unsealing": keep({KEYS: unsealing.encode()}, store),
            "global": opening.adapter,
            "state": opening.state,
            **{f"site-{name}": handed[name] for name in unsealing.survivors},
        }
        made = self._workshop.make(
            f"round-{opening.number}", "federated-aggregate", inputs, {}
        ).contents
        adapter = self._workshop.files(made["adapter"])
        self._advance(record, adapter, made["state"])
        summary = strict_json.loads(self._workshop.files(made["summary"])["summary.json"])
        if not isinstance(summary, dict):
            raise InvalidRecordError("not a summary")
        body = {"adapter": made["adapter"].raw, "files": dict(adapter)}
        present = {site.name: body for site in record.sites if site.name not in heard.refused}
        figures: dict[str, tuple[int, int]] = {}

        def check(name: str, answer: Fields) -> None:
            figures[name] = (answer.integer("correct"), answer.integer("rows"))

        heard.checked(heard.ask(present, "result"), check)
        return Told(
            summary=summary,
            refused=dict(heard.refused),
            correct=sum(one for one, _ in figures.values()),
            judged=sum(rows for _, rows in figures.values()),
            adapter=made["adapter"],
        )

    def _remember(self) -> None:
        """Go on after the last round that was finished, if there was one."""
        if not self._memory.exists():
            return
        fields = Fields(cbor.decode(self._memory.read_bytes()))
        self._number = fields.integer("number")
        self._previous = Digest(fields.take("previous", bytes))
        self._base = Digest(fields.take("base", bytes))
        self._adapter, self._state = (
            self._workshop.files(Digest(fields.take(name, bytes))) for name in ("adapter", "state")
        )
        fields.done()

    def _note(self) -> None:
        assert self._previous is not None, "a round was finished"
        store = self._workshop.store
        value = {
            "number": self._number,
            "previous": self._previous.raw,
            "base": self._base.raw,
            "adapter": keep(self._adapter, store).raw,
            "state": keep(self._state, store).raw,
        }
        write_whole(self._memory, cbor.encode(value))

    def _advance(self, record: Round, adapter: Files, state: Digest) -> None:
        """The next round starts from what this one made."""
        self._previous, self._number = record.id, self._number + 1
        self._state = self._workshop.files(state)
        if self._plan.method != "flora":
            self._adapter = adapter
            self._note()
            return
        # FLoRA: what was stacked goes into the base, and the next round begins with fresh factors.
        store = self._workshop.store
        inputs = {"model": self._base, "adapter": keep(adapter, store)}
        self._base = self._workshop.make(
            f"round-{record.opening.number}-model", "merge", inputs, {}
        ).contents["out"]
        self._note()


def _given(shares: Mapping[int, bytes | None]) -> dict[int, bytes]:
    return {number: share for number, share in shares.items() if share is not None}


def _own_seed(record: Round, name: str, shares: Mapping[int, bytes | None]) -> bytes:
    """The seed of a survivor's own mask, from shares (FED-33).

    Raises:
        SubmissionError: It is not what the site had committed to.
    """
    seed = shamir.join(_given(shares), threshold=record.plan.threshold)
    if commitment(seed) != record.site(name).commitment:
        raise SubmissionError("shares that do not give the seed of a site's mask", where=name)
    return seed


def _pair_seeds(
    record: Round, gone: str, names: Sequence[str], shares: Mapping[int, bytes | None]
) -> dict[str, bytes]:
    """The seeds of the masks that a site which fell out shares with the survivors.

    Raises:
        SubmissionError: The shares do not give the site's mask key.
    """
    key = KeyPair.of(shamir.join(_given(shares), threshold=record.plan.threshold))
    if key.public != record.site(gone).mask:
        raise SubmissionError("shares that do not give a site's mask key", where=gone)
    return {
        name: pair_seed(key, record.site(name).mask, round_id=record.id.raw, names=(gone, name))
        for name in names
    }
