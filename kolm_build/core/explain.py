"""Why something is to be built: root causes only, apart from what merely follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kolm_build.core.derivation import Derivation
from kolm_build.core.diff import Change, changes
from kolm_build.core.digest import Digest

Nodes = Mapping[str, Derivation]
"""A build's derivations by node name, each after everything it needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A node that differs in itself, not only in what it is given.

    Attributes:
        node: The node's name.
        is_new: There was no node of this name before.
        changes: What differs; empty for a new node.
    """

    node: str
    is_new: bool
    changes: tuple[Change, ...]

    def to_value(self) -> dict[str, object]:
        """The cause as a JSON object."""
        return {
            "node": self.node,
            "new": self.is_new,
            "changes": [change.to_value() for change in self.changes],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What changed between two builds.

    Attributes:
        causes: The nodes that differ in themselves, in build order.
        follows: Node to the causes above it, for nodes that differ only through their inputs.
        removed: Nodes that are no more.
    """

    causes: tuple[Cause, ...]
    follows: Mapping[str, tuple[str, ...]]
    removed: tuple[str, ...]

    def to_value(self) -> dict[str, object]:
        """The explanation as a JSON object."""
        return {
            "causes": [cause.to_value() for cause in self.causes],
            "follows": {node: list(causes) for node, causes in self.follows.items()},
            "removed": list(self.removed),
        }


def explain(before: Nodes, after: Nodes) -> Explanation:
    """Separate the causes of a change from its consequences.

    Args:
        before: The nodes of the earlier build.
        after: The nodes of the later one.
    """
    old_names, new_names = _names(before), _names(after)
    causes: list[Cause] = []
    above: dict[str, tuple[str, ...]] = {}
    order = {node: index for index, node in enumerate(after)}
    for node, derivation in after.items():
        cause = _cause(node, before.get(node), derivation, old_names, new_names)
        roots = {root for need in derivation.needs for root in above[new_names[need.derivation]]}
        if cause is not None:
            causes.append(cause)
            roots.add(node)
        above[node] = tuple(sorted(roots, key=order.__getitem__))
    own = {cause.node for cause in causes}
    return Explanation(
        causes=tuple(causes),
        follows={node: roots for node, roots in above.items() if roots and node not in own},
        removed=tuple(node for node in before if node not in after),
    )


def _cause(
    node: str,
    old: Derivation | None,
    new: Derivation,
    old_names: Mapping[Digest, str],
    new_names: Mapping[Digest, str],
) -> Cause | None:
    if old is None:
        return Cause(node=node, is_new=True, changes=())
    found = changes(old, new, old_node=old_names.__getitem__, new_node=new_names.__getitem__)
    return Cause(node=node, is_new=False, changes=found) if found else None


def _names(nodes: Nodes) -> Mapping[Digest, str]:
    return {derivation.digest: node for node, derivation in nodes.items()}
