"""The record of one round of federated training: who takes part, from what, under which plan.

Its digest is the round's id. Masks, shares and signatures are bound to it, and it names the round
before, so rounds are a chain (FED-1 to FED-5).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Self

from kolm_build.core import cbor
from kolm_build.core.digest import Digest, RecordKind
from kolm_build.core.federated.fixed_point import check_room
from kolm_build.core.federated.plan import FederationPlan
from kolm_build.core.fields import Fields
from kolm_build.core.name import parse_label
from kolm_build.errors import InvalidRecordError, RoundError

VERSION = 1
FILE = "round.cbor"
NONCE_BYTES = 32
KEY_BYTES = 32
_TAIL = 16
"""Noise beyond so many standard deviations has a chance below 2^-180."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A site that takes part.

    Attributes:
        name: Its name.
        key: Its Ed25519 public key.
        rows: How many training rows it says it has.
        agreement: Its X25519 public key of this round, under which shares are sent to it.
        mask: Its X25519 public key of this round, from which pairwise masks follow.
        commitment: SHA-256 of its own mask's seed (FED-33).
    """

    name: str
    key: bytes
    rows: int
    agreement: bytes
    mask: bytes
    commitment: bytes

    def __post_init__(self) -> None:
        parse_label(self.name)
        for what in ("key", "agreement", "mask", "commitment"):
            found: bytes = getattr(self, what)
            if len(found) != KEY_BYTES:
                raise InvalidRecordError(
                    f"not {KEY_BYTES} bytes", where=what, actual=str(len(found))
                )
        if not 1 <= self.rows < 1 << 40:
            raise InvalidRecordError("out of range", where="rows", actual=str(self.rows))

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {
            "name": self.name,
            "key": self.key,
            "rows": self.rows,
            "agreement": self.agreement,
            "mask": self.mask,
            "commitment": self.commitment,
        }

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        made = cls(
            name=fields.text("name"),
            key=fields.take("key", bytes),
            rows=fields.integer("rows"),
            agreement=fields.take("agreement", bytes),
            mask=fields.take("mask", bytes),
            commitment=fields.take("commitment", bytes),
        )
        fields.done()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What the aggregator says to open a round.

    Attributes:
        number: The round's number, from 1.
        nonce: 32 random bytes that no other round has.
        previous: Digest of the round before; None in the first.
        base: Content of the base model that every site must have.
        adapter: Content of the adapter that the round starts from.
        state: Content of the server's state.
        plan: What the federation has agreed on.
    """

    number: int
    nonce: bytes
    previous: Digest | None
    base: Digest
    adapter: Digest
    state: Digest
    plan: FederationPlan

    def __post_init__(self) -> None:
        if self.number < 1 or (self.previous is None) != (self.number == 1):
            raise InvalidRecordError("a round's number and the round before", where="number")
        if len(self.nonce) != NONCE_BYTES:
            raise InvalidRecordError(f"not {NONCE_BYTES} bytes", where="nonce")

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {
            "v": VERSION,
            "number": self.number,
            "nonce": self.nonce,
            "previous": self.previous.raw if self.previous else None,
            "base": self.base.raw,
            "adapter": self.adapter.raw,
            "state": self.state.raw,
            "plan": self.plan.to_value(),
        }

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The opening among `fields`."""
        fields.version(VERSION)
        previous = fields.nullable("previous", bytes)
        return cls(
            number=fields.integer("number"),
            nonce=fields.take("nonce", bytes),
            previous=None if previous is None else Digest(previous),
            base=Digest(fields.take("base", bytes)),
            adapter=Digest(fields.take("adapter", bytes)),
            state=Digest(fields.take("state", bytes)),
            plan=fields.record("plan", FederationPlan.from_value),
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The opening that canonical CBOR encodes."""
        fields = Fields(cbor.decode(data))
        made = cls.take(fields)
        fields.done()
        return made

    def encode(self) -> bytes:
        """The canonical bytes."""
        return cbor.encode(self.to_value())


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A round with the sites that take part.

    Attributes:
        opening: What it was opened with.
        sites: The sites, sorted by name.
    """

    opening: Opening
    sites: tuple[Site, ...]

    def __post_init__(self) -> None:
        names, keys = [one.name for one in self.sites], {one.key for one in self.sites}
        if names != sorted(set(names)) or len(keys) != len(names):
            raise InvalidRecordError("sites out of order, or one twice", where="sites")
        plan = self.plan
        if len(names) < max(2, plan.threshold):
            raise RoundError(
                "too few sites for a round",
                where=f"round {self.opening.number}",
                expected=f"{max(2, plan.threshold)} or more",
                actual=f"{len(names)}: " + (", ".join(names) or "none"),
            )
        if 2 * plan.threshold <= len(names):
            raise InvalidRecordError(
                "two groups of sites could each unmask by themselves",
                where="threshold",
                expected=f"more than half of {len(names)} sites",
                actual=str(plan.threshold),
            )
        tail = _TAIL * (isqrt(plan.noise_variance) + 1) * len(names) if plan.has_noise else 0
        check_room(weight=self.weight_of(names), bound=plan.bound, noise=tail)

    @property
    def plan(self) -> FederationPlan:
        """What the federation has agreed on."""
        return self.opening.plan

    def site(self, name: str) -> Site:
        """The site called `name`.

        Raises:
            InvalidRecordError: It takes no part.
        """
        for one in self.sites:
            if one.name == name:
                return one
        raise InvalidRecordError("no site of this round", where="site", actual=repr(name)[:80])

    def number_of(self, name: str) -> int:
        """The site's number, from 1: that of its shares."""
        return self.sites.index(self.site(name)) + 1

    def weight_of(self, names: list[str] | tuple[str, ...]) -> int:
        """The weights of the sites `names`, added."""
        chosen = [one for one in self.sites if one.name in names]
        return sum(one.rows for one in chosen) if self.plan.weight == "rows" else len(chosen)

    def sign_of(self, site: str, peer: str) -> int:
        """+1 where `site` adds the mask that it shares with `peer`, -1 where it takes it away."""
        return 1 if self.number_of(site) < self.number_of(peer) else -1

    def to_value(self) -> dict[str, object]:
        """The record's plain value."""
        return self.opening.to_value() | {"sites": [one.to_value() for one in self.sites]}

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        made = cls(opening=Opening.take(fields), sites=fields.records("sites", Site.from_value))
        fields.done()
        return made

    def encode(self) -> bytes:
        """The canonical bytes."""
        return cbor.encode(self.to_value())

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The inverse of `encode`, strict."""
        return cls.from_value(cbor.decode(data))

    @property
    def id(self) -> Digest:
        """The round's id."""
        return Digest.of_record(self.encode(), RecordKind.FEDERATED_ROUND)
