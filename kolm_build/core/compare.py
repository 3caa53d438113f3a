"""Where two trees differ: by path, then (for weights) by tensor.

Pure over values: trees come through a lookup, safetensors headers and payload digests from the
caller. Comparing two trees reads only the folders whose digests differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from kolm_build.core.digest import Digest
from kolm_build.core.tree import File, Folder, Node, Tree

TreeOf = Callable[[Digest], Tree]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One path at which two trees differ; a side without the path has None.

    Attributes:
        path: The path below the trees' root, ``/`` between names.
        before: The node in the first tree.
        after: The node in the second.
    """

    path: str
    before: Node | None
    after: Node | None

    @property
    def kind(self) -> str:
        """``added``, ``removed``, ``mode`` (bytes are equal) or ``changed``."""
        if self.before is None:
            return "added"
        if self.after is None:
            return "removed"
        same_bytes = (
            isinstance(self.before, File)
            and isinstance(self.after, File)
            and self.before.b3 == self.after.b3
        )
        return "mode" if same_bytes else "changed"

    def to_value(self) -> dict[str, object]:
        """The difference as a JSON object."""
        return {
            "path": self.path,
            "kind": self.kind,
            "before": _shown(self.before),
            "after": _shown(self.after),
        }


def differences(before: Digest, after: Digest, tree_of: TreeOf) -> Iterator[Difference]:
    """Every path at which the trees `before` and `after` differ, in path order.

    A folder that only one side has is one difference, not one for each file below it.
    """
    if before != after:
        yield from _trees(tree_of(before), tree_of(after), "", tree_of)


def _trees(before: Tree, after: Tree, prefix: str, tree_of: TreeOf) -> Iterator[Difference]:
    # Trees are as deep as folders on a disk: recursion is safe, and reads like the tree.
    old, new = dict(before.entries), dict(after.entries)
    for name in sorted(old.keys() | new.keys(), key=str.encode):
        left, right = old.get(name), new.get(name)
        if left == right:
            continue
        if isinstance(left, Folder) and isinstance(right, Folder):
            path = f"{prefix}{name}/"
            yield from _trees(tree_of(left.tree), tree_of(right.tree), path, tree_of)
        else:
            yield Difference(path=prefix + name, before=left, after=right)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDifference:
    """A tensor that differs between two sets of weights.

    Attributes:
        name: The tensor's name.
        kind: ``added``, ``removed``, ``shape`` (or dtype) or ``values``.
    """

    name: str
    kind: str


TensorFacts = tuple[str, tuple[int, ...], Digest]
"""dtype, shape, digest of the payload."""


def tensor_differences(
    before: Mapping[str, TensorFacts], after: Mapping[str, TensorFacts]
) -> tuple[TensorDifference, ...]:
    """The tensors that differ, by name; order, header and sharding do not matter."""
    found = []
    for name in sorted(before.keys() | after.keys()):
        left, right = before.get(name), after.get(name)
        if left == right:
            continue
        if left is None or right is None:
            kind = "added" if left is None else "removed"
        else:
            kind = "values" if left[:2] == right[:2] else "shape"
        found.append(TensorDifference(name=name, kind=kind))
    return tuple(found)


def _shown(node: Node | None) -> str | None:
    if node is None:
        return None
    if isinstance(node, File):
        return f"{node.b3}{' executable' if node.executable else ''}"
    return str(node.tree) if isinstance(node, Folder) else f"link to {node.target}"
