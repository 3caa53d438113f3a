"""What a method is given: one tensor of every model, in an order that nobody chose (MERGE-4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from hashlib import sha256
from typing import Protocol

import torch

Read = Callable[[], torch.Tensor]
"""Gives a tensor, float32, in memory of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One model's tensor.

    Attributes:
        read: Gives it; called when it is needed, so that few are in memory at once.
        weight: The model's weight.
        digest: The BLAKE3 digest of the tensor's bytes.
        occurrence: How many members before this one have the same bytes.
    """

    read: Read
    weight: Fraction
    digest: bytes
    occurrence: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The tensors of one name.

    Attributes:
        name: Their name.
        base: Gives the base model's.
        members: The models', in canonical order.
        seed: The derivation's seed.
    """

    name: str
    base: Read
    members: Sequence[Member]
    seed: int

    def changes(self) -> Iterable[tuple[Member, torch.Tensor]]:
        """Each member with its task vector: its tensor less the base's, one after another."""
        base = self.base()
        for member in self.members:
            yield member, member.read().sub_(base)

    def generator(self, member: Member) -> torch.Generator:
        """The random numbers of `member` in this group (MERGE-6)."""
        text = (
            f"kolm_build 2026 merge v1 {self.seed} {member.digest.hex()} "
            f"{member.occurrence} {self.name}"
        )
        seed = int.from_bytes(sha256(text.encode()).digest()[:8], "big")
        return torch.Generator().manual_seed(seed)


class Method(Protocol):
    """A way to combine models, with its parameters."""

    @property
    def weights(self) -> Sequence[Fraction]:
        """The weight of each model, in the order in which the derivation names them."""

    def merge(self, group: Group) -> torch.Tensor:
        """The combined tensor, float32, of the shape of the group's."""


def in_canonical_order(members: Iterable[Member]) -> tuple[Member, ...]:
    """`members` by the digest of their bytes, then by weight, each told its `occurrence`."""
    seen: Counter[bytes] = Counter()
    ordered = []
    for member in sorted(members, key=lambda one: (one.digest, one.weight)):
        ordered.append(
            Member(
                read=member.read,
                weight=member.weight,
                digest=member.digest,
                occurrence=seen[member.digest],
            )
        )
        seen[member.digest] += 1
    return tuple(ordered)
