"""What is inside a sealed update, and what unseals a sum of them (FED-31, FED-34)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Self

from kolm_build.core import cbor
from kolm_build.core.digest import Digest
from kolm_build.core.federated.keystream import SEED_BYTES
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError

VERSION = 1

HEAD = "head.cbor"
VECTOR = "vector.u64"
SECRET = "secret.cbor"  # noqa: S105 -- the name of a file
KEYS = "unsealing.cbor"

Layout = tuple[tuple[str, tuple[int, ...]], ...]
"""Sorted (tensor name, shape) pairs: where each number of a vector belongs."""


def size_of(layout: Layout) -> int:
    """How many numbers a vector of this layout has."""
    return sum(prod(shape) for _, shape in layout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a sealed vector says of itself.

    Attributes:
        round: The round's id.
        site: Whose it is.
        layout: Where each number belongs.
    """

    round: Digest
    site: str
    layout: Layout

    def encode(self) -> bytes:
        """The canonical bytes."""
        layout = [[name, list(shape)] for name, shape in self.layout]
        value = {"v": VERSION, "round": self.round.raw, "site": self.site, "layout": layout}
        return cbor.encode(value)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The inverse of `encode`, strict."""
        fields = Fields(cbor.decode(data))
        fields.version(VERSION)
        made = cls(
            round=Digest(fields.take("round", bytes)),
            site=fields.text("site"),
            layout=fields.records("layout", _placed),
        )
        fields.done()
        return made


def _placed(value: object) -> tuple[str, tuple[int, ...]]:
    match value:
        case [str(name), list(shape)] if all(type(one) is int and one > 0 for one in shape):
            return name, tuple(shape)
    raise InvalidRecordError("not a tensor's name and shape")


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """What a site keeps to itself: the seeds of a round.

    Attributes:
        pairs: Peer to the seed of the mask that the two share; empty without masks.
        own: Seed of its own mask; None without masks.
        noise: Seed of its noise; None without noise.
    """

    pairs: Mapping[str, bytes]
    own: bytes | None
    noise: bytes | None

    def encode(self) -> bytes:
        """The canonical bytes."""
        value = {"v": VERSION, "pairs": dict(self.pairs), "own": self.own, "noise": self.noise}
        return cbor.encode(value)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The inverse of `encode`, strict."""
        fields = Fields(cbor.decode(data))
        fields.version(VERSION)
        made = cls(
            pairs=_seeds(fields, "pairs"),
            own=fields.nullable("own", bytes),
            noise=fields.nullable("noise", bytes),
        )
        fields.done()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsealing:
    """What the aggregator has learned that takes the masks from the sum.

    Attributes:
        survivors: The sites whose updates are in the sum, sorted.
        own: Survivor to the seed of its own mask; empty without masks.
        pairs: Site that fell out, to survivor, to the seed of the mask that the two share.
    """

    survivors: tuple[str, ...]
    own: Mapping[str, bytes]
    pairs: Mapping[str, Mapping[str, bytes]]

    def encode(self) -> bytes:
        """The canonical bytes."""
        pairs = {name: dict(seeds) for name, seeds in self.pairs.items()}
        survivors = list(self.survivors)
        return cbor.encode(
            {"v": VERSION, "survivors": survivors, "own": dict(self.own), "pairs": pairs}
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The inverse of `encode`, strict."""
        fields = Fields(cbor.decode(data))
        fields.version(VERSION)
        fallen = fields.table("pairs")
        inner = Fields(fallen)
        made = cls(
            survivors=fields.records("survivors", _name),
            own=_seeds(fields, "own"),
            pairs={name: _seeds(inner, name) for name in fallen},
        )
        fields.done()
        if list(made.survivors) != sorted(set(made.survivors)):
            raise InvalidRecordError("sites out of order, or one twice", where="survivors")
        return made


def _name(value: object) -> str:
    if type(value) is not str:
        raise InvalidRecordError("not a name")
    return value


def _seeds(fields: Fields, name: str) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    for peer, seed in fields.table(name).items():
        if type(seed) is not bytes or len(seed) != SEED_BYTES:
            raise InvalidRecordError("not a seed", where=f"{name}.{peer}")
        found[peer] = seed
    return found
