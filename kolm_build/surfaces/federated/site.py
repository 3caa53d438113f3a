"""A site: its own project, store and key; it answers an aggregator and gives no row away.

Everything that it says is made in its own store and signed with its own key. What it knows of a
round that others must not know is in memory and in its own store alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from kolm_build.attest.keys import PublicKey, SigningKey
from kolm_build.attest.rounds import (
    KeyPair,
    Shares,
    commitment,
    open_message,
    pair_seed,
    sign_message,
)
from kolm_build.core import cbor, strict_json
from kolm_build.core.digest import Digest
from kolm_build.core.federated import shamir
from kolm_build.core.federated.plan import FACTORING
from kolm_build.core.federated.round import FILE, Opening, Round, Site
from kolm_build.core.federated.sealed import SECRET, Secret
from kolm_build.core.federated.submission import SEAL, UPDATE, update_params
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError, RoundError, SubmissionError
from kolm_build.surfaces.federated.checking import read_bytes, read_tree
from kolm_build.surfaces.federated.settings import SiteSettings
from kolm_build.surfaces.federated.wire import Message
from kolm_build.surfaces.federated.workshop import Made, Workshop
from kolm_build.surfaces.files import write_whole
from kolm_build.surfaces.trees import keep

SEED_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What a site's project gives.

    Attributes:
        base: Content of its base model.
        train: Content of its training rows.
        holdout: Content of its held-out rows.
        rows: How many training rows there are.
    """

    base: Digest
    train: Digest
    holdout: Digest
    rows: int


@dataclass(slots=True, kw_only=True)
class _Current:
    """The round that runs, as one site knows it."""

    opening: Opening
    agreement: KeyPair
    mask: KeyPair
    own: bytes
    site: Site
    record: Round | None = None
    entrusted: dict[str, Shares] = field(default_factory=dict)
    update: Made | None = None
    survivors: tuple[str, ...] = ()

    def known(self) -> Round:
        """The round's record.

        Raises:
            SubmissionError: The aggregator has not shown it yet.
        """
        if self.record is None:
            raise SubmissionError("a round whose record nobody has seen")
        return self.record


class SiteParty:
    """A site that answers messages.

    Args:
        settings: Its name and whom it knows.
        holdings: What its project gives.
        workshop: Where it builds.
        memory: The folder of what it must not forget: used nonces, the last round.
    """

    def __init__(
        self, *, settings: SiteSettings, holdings: Holdings, workshop: Workshop, memory: Path
    ) -> None:
        self._settings = settings
        self._holdings = holdings
        self._workshop = workshop
        self._memory = Memory(memory)
        self._base = self._memory.base or holdings.base
        self._current: _Current | None = None

    @property
    def name(self) -> str:
        """Its name."""
        return self._settings.name

    @property
    def _key(self) -> SigningKey:
        return self._workshop.key

    def handle(self, message: Fields) -> Message:
        """The answer to one message.

        Raises:
            KolmError: It is refused.
        """
        kind = message.text("kind")
        answers: Mapping[str, Callable[[Fields], Message]] = {
            "hello": self._hello,
            "open": self._open,
            "round": self._round,
            "shares": self._shares,
            "survivors": self._survivors,
            "unmask": self._unmask,
            "result": self._result,
        }
        if kind not in answers:
            raise SubmissionError("a message that no site knows", actual=kind)
        answer = answers[kind](message)
        message.done()
        return {"kind": kind, **answer}

    def _hello(self, _message: Fields) -> Message:
        return {"name": self.name, "key": self._key.public.raw}

    # The round is opened

    def _open(self, message: Fields) -> Message:
        opening = self._opening(message.take("opening", bytes))
        self._take_in(message, opening)
        current = _Current(
            opening=opening,
            agreement=KeyPair.of(os.urandom(SEED_BYTES)),
            mask=KeyPair.of(os.urandom(SEED_BYTES)),
            own=os.urandom(SEED_BYTES),
            site=Site(
                name=self.name,
                key=self._key.public.raw,
                rows=self._holdings.rows,
                agreement=bytes(SEED_BYTES),
                mask=bytes(SEED_BYTES),
                commitment=bytes(SEED_BYTES),
            ),
        )
        current.site = Site(
            name=self.name,
            key=self._key.public.raw,
            rows=self._holdings.rows,
            agreement=current.agreement.public,
            mask=current.mask.public,
            commitment=commitment(current.own),
        )
        self._current = current
        return {"advert": advert(opening, current.site, self._key)}

    def _opening(self, envelope: bytes) -> Opening:
        """What the aggregator opens, checked against what this site remembers (FED-3 to FED-5)."""
        said = open_message(envelope, "open", self._settings.aggregator, who="aggregator")
        opening = Opening.decode(said.take("opening", bytes))
        said.done()
        self._memory.check(opening)
        if opening.base != self._base:
            raise SubmissionError(
                "the round is about another base model than this site has",
                where=f"round {opening.number}",
                expected=str(self._base),
                actual=str(opening.base),
            )
        self._memory.use(opening.nonce)
        return opening

    def _take_in(self, message: Fields, opening: Opening) -> None:
        for name, content in (("adapter", opening.adapter), ("state", opening.state)):
            keep(read_tree(message, name, content, "aggregator"), self._workshop.store)

    # Who takes part

    def _round(self, message: Fields) -> Message:
        current = self._running()
        record = Round.decode(message.take("round", bytes))
        adverts = read_bytes(message, "adverts")
        if record.opening != current.opening or record.site(self.name) != current.site:
            raise SubmissionError("a round that is not what this site joined")
        for site in record.sites:
            if site.name not in adverts:
                raise SubmissionError("a site that nobody signed for", where=site.name)
            check_advert(adverts[site.name], record.opening, site, self._peer(site.name))
        current.record = record
        if not record.plan.masks:
            return {"shares": {}}
        return {"shares": self._entrust(current, record)}

    def _peer(self, name: str) -> PublicKey:
        if name not in self._settings.peers:
            raise SubmissionError(
                "a site that this one does not know",
                where=name,
                expected=", ".join(sorted(self._settings.peers)),
            )
        return self._settings.peers[name]

    def _entrust(self, current: _Current, record: Round) -> Mapping[str, bytes]:
        """Shares of the mask key and of the own seed, sealed for each other site (FED-35)."""
        threshold, count = record.plan.threshold, len(record.sites)
        split = {
            what: shamir.split(
                secret,
                threshold=threshold,
                shares=count,
                random=os.urandom(shamir.random_bytes_needed(threshold)),
            )
            for what, secret in (("mask", current.mask.private), ("own", current.own))
        }
        made = {}
        for number, site in enumerate(record.sites, start=1):
            shares = Shares(mask=split["mask"][number], own=split["own"][number])
            if site.name == self.name:
                current.entrusted[self.name] = shares
                continue
            made[site.name] = shares.seal(
                current.agreement,
                site.agreement,
                round_id=record.id.raw,
                sender=self.name,
                receiver=site.name,
            )
        return made

    # Training and sealing

    def _shares(self, message: Fields) -> Message:
        current = self._running()
        record = current.known()
        for sender, data in read_bytes(message, "shares").items():
            current.entrusted[sender] = Shares.open(
                data,
                current.agreement,
                record.site(sender).agreement,
                round_id=record.id.raw,
                sender=sender,
                receiver=self.name,
            )
        if record.plan.masks and len(current.entrusted) < record.plan.threshold:
            raise RoundError(
                "too few sites sent shares",
                expected=str(record.plan.threshold),
                actual=str(len(current.entrusted)),
            )
        current.update = self._train(current)
        return self._handed_in(current, record, current.update)

    def _train(self, current: _Current) -> Made:
        opening = current.opening
        inputs = {
            "model": self._base,
            "train": self._holdings.train,
            "global": opening.adapter,
            "state": opening.state,
        }
        control = self._memory.control
        if control is not None:
            inputs["control"] = control
        name = f"round-{opening.number}-update"
        return self._workshop.make(name, UPDATE, inputs, update_params(opening.plan))

    def _handed_in(self, current: _Current, record: Round, update: Made) -> Message:
        files = self._workshop.files
        answer: dict[str, object] = {
            "update": update.derivation.encode(),
            "update_claim": update.claims["update"].encode(),
            "card_claim": update.claims["card"].encode(),
            "card": files(update.contents["card"]),
        }
        if record.plan.method in FACTORING:
            return answer | {"files": files(update.contents["update"])}
        sealed = self._seal(current, record, update)
        return answer | {
            "seal": sealed.derivation.encode(),
            "seal_claim": sealed.claims["out"].encode(),
            "files": files(sealed.contents["out"]),
        }

    def _seal(self, current: _Current, record: Round, update: Made) -> Made:
        plan, store = record.plan, self._workshop.store
        pairs = {
            peer: pair_seed(
                current.mask,
                record.site(peer).mask,
                round_id=record.id.raw,
                names=(self.name, peer),
            )
            for peer in sorted(current.entrusted)
            if peer != self.name
        }
        secret = Secret(
            pairs=pairs if plan.masks else {},
            own=current.own if plan.masks else None,
            noise=os.urandom(SEED_BYTES) if plan.has_noise else None,
        )
        inputs = {
            "update": update.contents["update"],
            "global": record.opening.adapter,
            "round": keep({FILE: record.encode()}, store),
            "secret": keep({SECRET: secret.encode()}, store),
        }
        name = f"round-{record.opening.number}-seal"
        return self._workshop.make(name, SEAL, inputs, {"site": self.name})

    # Who stayed, and what takes the masks away

    def _survivors(self, message: Fields) -> Message:
        """Sign the list of those who stayed; another list of the same round is refused (FED-37)."""
        current = self._running()
        record = current.known()
        names = tuple(message.records("survivors", _text))
        if current.survivors and current.survivors != names:
            raise SubmissionError("a second list of those who stayed, in one round")
        check_survivors(names, record)
        current.survivors = names
        return {"signed": survivors_message(record, names, self._key)}

    def _unmask(self, message: Fields) -> Message:
        current = self._running()
        record, names = current.known(), current.survivors
        signatures = read_bytes(message, "signatures")
        agreed = [name for name in names if name in signatures]
        for name in agreed:
            check_signed_survivors(signatures[name], record, names, self._peer(name))
        if len(agreed) < record.plan.threshold:
            raise RoundError(
                "too few sites agree on who stayed",
                expected=f"{record.plan.threshold} or more",
                actual=str(len(agreed)),
            )
        own = {name: current.entrusted[name].own for name in names if name in current.entrusted}
        gone = {
            name: shares.mask for name, shares in current.entrusted.items() if name not in names
        }
        current.entrusted = {}  # what was told once is not told again, whatever is asked
        return {"own": own, "masks": gone}

    # What came of it

    def _result(self, message: Fields) -> Message:
        """Take in the new adapter, and tell how good it is on rows that stay here."""
        current = self._running()
        adapter = Digest(message.take("adapter", bytes))
        keep(read_tree(message, "files", adapter, "aggregator"), self._workshop.store)
        model = self._workshop.make(
            f"round-{current.opening.number}-model",
            "merge",
            {"model": self._base, "adapter": adapter},
            {},
        ).contents["out"]
        told = self.judge(model, f"round-{current.opening.number}")
        if current.opening.plan.method == "flora":
            self._base = model
        self._memory.finish(
            current.opening, current.known().id, base=self._base, control=_control_of(current)
        )
        self._current = None
        return told

    def judge(self, model: Digest, name: str) -> Message:
        """How many of the held-out rows `model` has right."""
        made = self._workshop.make(
            f"{name}-evaluation",
            "evaluate",
            {"model": model, "holdout": self._holdings.holdout},
            dict(self._settings.evaluate),
        )
        summary = strict_json.loads(self._workshop.files(made.contents["out"])["summary.json"])
        fields = Fields(summary)
        return {"correct": fields.integer("correct"), "rows": fields.integer("rows")}

    def _running(self) -> _Current:
        if self._current is None:
            raise SubmissionError("no round is open at this site", where=self.name)
        return self._current


def _control_of(current: _Current) -> Digest | None:
    """The control variate that the site keeps, where its method has one and it took part."""
    if current.update is None or current.opening.plan.method not in ("scaffold", "fed-dyn"):
        return None
    return current.update.contents["control"]


def _text(value: object) -> str:
    if type(value) is not str:
        raise InvalidRecordError("not a name")
    return value


# What is signed


def advert(opening: Opening, site: Site, key: SigningKey) -> bytes:
    """The site's word that it takes part, with these rows and keys (FED-36)."""
    return sign_message("advert", _advert(opening, site), key)


def _advert(opening: Opening, site: Site) -> dict[str, object]:
    return {"opening": sha256(opening.encode()).digest(), "site": site.to_value()}


def check_advert(envelope: bytes, opening: Opening, site: Site, key: PublicKey) -> None:
    """Refuse an advert that is not `site`'s own for this opening.

    Raises:
        SubmissionError: It is not.
    """
    said = open_message(envelope, "advert", key, who=site.name)
    if site.key != key.raw:
        raise SubmissionError("a site under an unknown key", where=site.name, expected=str(key))
    found = {
        "opening": said.take("opening", bytes),
        "site": Site.from_value(said.table("site")).to_value(),
    }
    said.done()
    if found != _advert(opening, site):
        raise SubmissionError("a site's word about another round or other keys", where=site.name)


def check_survivors(names: tuple[str, ...], record: Round) -> None:
    """Refuse a list that is no list of enough sites of the round.

    Raises:
        SubmissionError: It is not sorted, or names somebody else.
        RoundError: They are fewer than the threshold.
    """
    known = {one.name for one in record.sites}
    if list(names) != sorted(set(names)) or not set(names) <= known:
        raise SubmissionError("not a list of sites of this round", actual=", ".join(names))
    if len(names) < record.plan.threshold:
        raise RoundError(
            "too few sites stayed",
            where=f"round {record.opening.number}",
            expected=f"{record.plan.threshold} or more of {len(record.sites)}",
            actual=f"{len(names)}: " + (", ".join(names) or "none"),
            advice="Open the round again, with a new nonce, when more sites can answer.",
        )


def survivors_message(record: Round, names: tuple[str, ...], key: SigningKey) -> bytes:
    """A site's word about who stayed."""
    body = {"round": record.id.raw, "survivors": list(names)}
    return sign_message("survivors", body, key)


def check_signed_survivors(
    envelope: bytes, record: Round, names: tuple[str, ...], key: PublicKey
) -> None:
    """Refuse a word about other survivors or another round.

    Raises:
        SubmissionError: It is one.
    """
    said = open_message(envelope, "survivors", key, who="survivors")
    found = (said.take("round", bytes), said.records("survivors", _text))
    said.done()
    if found != (record.id.raw, names):
        raise SubmissionError("sites that do not agree on who stayed")


# What a site must not forget


class Memory:
    """Used nonces and the last finished round, on disk.

    Args:
        folder: Where; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._nonces = folder / "nonces"
        self._nonces.mkdir(parents=True, exist_ok=True)
        self._last = folder / "last.cbor"

    def _read(self) -> Mapping[str, object]:
        if not self._last.exists():
            return {"number": 0, "id": None, "plan": None, "base": None, "control": None}
        found = cbor.decode(self._last.read_bytes())
        assert isinstance(found, dict), "what `finish` wrote"
        return found

    @property
    def control(self) -> Digest | None:
        """The site's control variate after its last round; None where there is none."""
        return self._digest("control")

    @property
    def base(self) -> Digest | None:
        """The base model after the last round; None before the first."""
        return self._digest("base")

    def _digest(self, name: str) -> Digest | None:
        raw = self._read()[name]
        return Digest(raw) if type(raw) is bytes else None

    def check(self, opening: Opening) -> None:
        """Refuse a round that does not follow the last one.

        Raises:
            SubmissionError: Its nonce was used, its number is not above the last one's, it follows
                another round than that, or its plan is not the one that was agreed on.
        """
        where = f"round {opening.number}"
        if (self._nonces / opening.nonce.hex()).exists():
            raise SubmissionError("a round's nonce that was used before", where=where)
        last = self._read()
        number = last["number"]
        if type(number) is not int or opening.number <= number:
            raise SubmissionError(
                "a round that is over", where=where, expected=f"a number above {number}"
            )
        previous = opening.previous.raw if opening.previous else None
        if opening.number == number + 1 and previous != last["id"]:
            raise SubmissionError("a round after another one than this site's last", where=where)
        if last["plan"] not in (None, _plan_digest(opening)):
            raise SubmissionError("a plan that is not the one agreed on", where=where)

    def use(self, nonce: bytes) -> None:
        """Note that a nonce is used, before anything follows from it.

        Raises:
            SubmissionError: It was used before, perhaps a moment ago.
        """
        try:
            with (self._nonces / nonce.hex()).open("xb") as file:
                os.fsync(file.fileno())
        except FileExistsError:
            raise SubmissionError("a round's nonce that was used before") from None

    def finish(
        self, opening: Opening, round_id: Digest, *, base: Digest, control: Digest | None
    ) -> None:
        """Note that a round is over."""
        kept = control or self.control
        value = {
            "number": opening.number,
            "id": round_id.raw,
            "plan": _plan_digest(opening),
            "base": base.raw,
            "control": kept.raw if kept else None,
        }
        write_whole(self._last, cbor.encode(value))


def _plan_digest(opening: Opening) -> bytes:
    return sha256(cbor.encode(opening.plan.to_value())).digest()
