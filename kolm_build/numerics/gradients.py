"""The sum of shards' gradients in the order of `shards`, a few partial sums at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from kolm_build.errors import InvalidRecordError
from kolm_build.numerics.shards import Node, sibling


class TreeSum:
    """Adds one vector for each shard by the fixed tree; the order in which they come is free.

    Vectors that come in ascending order leave at most log2(shards) + 1 partial sums in memory.

    Args:
        shards: How many shards there are.

    Determinism:
        Bitwise: every addition is that of two parts of the tree, left + right, rounded once.
    """

    def __init__(self, shards: int) -> None:
        self._shards = shards
        self._parts: dict[Node, torch.Tensor] = {}
        self._whole = Node(0, shards)

    @property
    def parts(self) -> int:
        """How many partial sums are held."""
        return len(self._parts)

    def add(self, shard: int, vector: torch.Tensor) -> None:
        """Take the vector of `shard`, shape (elements,); it is the sum's from now on."""
        self.put(Node(shard, shard + 1), vector)

    def put(self, node: Node, vector: torch.Tensor) -> None:
        """Take the sum of the part `node`, and add whatever it completes.

        Raises:
            InvalidRecordError: The tree has no such part, or it came before.
        """
        other = sibling(node, self._shards)
        while other is not None and other in self._parts:
            left, right = sorted((node, other))
            vector = _added(vector, self._parts.pop(other), is_left=node == left)
            node = Node(left.start, right.end)
            other = sibling(node, self._shards)
        if any(held.start < node.end and node.start < held.end for held in self._parts):
            raise InvalidRecordError("a shard came twice", where=f"shard {node.start}")
        self._parts[node] = vector

    def take(self, node: Node) -> torch.Tensor:
        """Hand over the sum of the part `node`.

        Raises:
            InvalidRecordError: A shard of it has not come.
        """
        if node not in self._parts:
            raise InvalidRecordError(
                "a shard is missing", where=f"shards {node.start} to {node.end - 1}"
            )
        return self._parts.pop(node)

    def total(self) -> torch.Tensor:
        """Hand over the sum of all shards; the sum is empty then and can be used again."""
        return self.take(self._whole)


def flat_gradients(
    parameters: Iterable[torch.Tensor], behind: Iterable[torch.Tensor] = ()
) -> torch.Tensor:
    """The gradients of `parameters` as one vector, in their order; +0 where there is none.

    Args:
        parameters: Whose gradients.
        behind: Numbers to put behind the gradients, each shape (), in any dtype.

    Returns:
        Shape (elements of all parameters + numbers,), float32.

    Raises:
        InvalidRecordError: A gradient is not float32.
    """
    pieces = []
    for parameter in parameters:
        gradient = parameter.grad
        piece = torch.zeros_like(parameter) if gradient is None else gradient.detach()
        if piece.dtype != torch.float32:
            raise InvalidRecordError(
                "a gradient of another dtype", expected="float32", actual=str(piece.dtype)
            )
        pieces.append(piece.reshape(-1))
    return torch.cat([*pieces, *(one.detach().float().reshape(1) for one in behind)])


def take_gradients(
    parameters: Sequence[torch.Tensor], behind: Iterable[torch.Tensor] = ()
) -> torch.Tensor:
    """What `flat_gradients` gives; the parameters have no gradients after it."""
    vector = flat_gradients(parameters, behind)
    for parameter in parameters:
        parameter.grad = None
    return vector


def set_gradients(parameters: Sequence[torch.Tensor], vector: torch.Tensor) -> None:
    """Make the parts of `vector`, as `flat_gradients` lays them out, the gradients."""
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, piece in zip(parameters, vector.split(sizes), strict=True):
        parameter.grad = piece.view_as(parameter)


def _added(one: torch.Tensor, other: torch.Tensor, *, is_left: bool) -> torch.Tensor:
    left, right = (one, other) if is_left else (other, one)
    return left.add_(right)
