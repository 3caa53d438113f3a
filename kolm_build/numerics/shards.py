"""How the gradients of a batch are added, whoever computes them (spec/numerics.md, NUM-110 on).

A batch is cut into logical shards. The shards' gradients are added by one fixed tree over the
shards' numbers, the tree of RFC 6962: the left part has as many shards as the largest power of two
below their number. Physical micro-batches and workers are any partition of the shards, and no
result depends on it. Values alone: neither torch nor a process is known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kolm_build.errors import InvalidRecordError


@dataclass(frozen=True, slots=True, order=True)
class Node:
    """A part of the tree: the shards from `start` to `end`, `end` not among them.

    Attributes:
        start: Number of its first shard, from 0.
        end: Number after its last.
    """

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise InvalidRecordError(
                "a part of the tree has a shard at least", actual=f"{self.start} to {self.end}"
            )

    @property
    def is_shard(self) -> bool:
        """Whether it is one shard."""
        return self.end - self.start == 1

    def halves(self) -> tuple[Node, Node]:
        """The two parts whose sums are added to give this one's, left first."""
        middle = self.start + (1 << (self.end - self.start - 1).bit_length() - 1)
        return Node(self.start, middle), Node(middle, self.end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """A partial sum that one worker sends to another.

    Attributes:
        source: The worker that has it.
        target: The worker that adds it to the part on its left.
        node: Which part of the tree it is the sum of.
    """

    source: int
    target: int
    node: Node


def parent(node: Node, shards: int) -> Node | None:
    """The part above `node` in the tree of `shards` shards; None for the whole.

    Raises:
        InvalidRecordError: That tree has no such part.
    """
    above, here = None, Node(0, shards)
    while here != node:
        if here.is_shard:
            raise InvalidRecordError(
                "not a part of the tree",
                expected=f"a part of the tree of {shards} shards",
                actual=f"{node.start} to {node.end}",
            )
        left, right = here.halves()
        above, here = here, left if node.start < left.end else right
    return above


def sibling(node: Node, shards: int) -> Node | None:
    """The part that `node` is added to, or that is added to it; None for the whole."""
    above = parent(node, shards)
    if above is None:
        return None
    left, right = above.halves()
    return right if node == left else left


def cut(rows: int, shard_rows: int) -> tuple[range, ...]:
    """The rows of a batch by shard: `shard_rows` each in the batch's order, the last may be short.

    Raises:
        InvalidRecordError: There is no row, or a shard would have none.
    """
    if rows < 1 or shard_rows < 1:
        raise InvalidRecordError(
            "a batch has a row at least, and so has a shard",
            actual=f"{rows} rows, {shard_rows} a shard",
        )
    return tuple(range(at, min(at + shard_rows, rows)) for at in range(0, rows, shard_rows))


def transfers(owners: Sequence[int]) -> tuple[Transfer, ...]:
    """What workers send one another so that one of them gets the sum of all shards.

    Args:
        owners: For each shard the worker that computes it.

    Returns:
        The transfers in an order in which each can be made when those before it are; the last
        sum is at the worker of shard 0.
    """
    return tuple(_transfers(Node(0, len(owners)), owners))


def _transfers(node: Node, owners: Sequence[int]) -> Iterator[Transfer]:
    if len(set(owners[node.start : node.end])) == 1:
        return
    left, right = node.halves()
    yield from _transfers(left, owners)
    yield from _transfers(right, owners)
    source, target = owners[right.start], owners[left.start]
    if source != target:
        yield Transfer(source=source, target=target, node=right)
