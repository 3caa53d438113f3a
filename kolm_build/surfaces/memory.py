"""What a store remembers of a project: its last two builds, and the root that keeps the last.

Memos may be lost, and nothing but explanations is lost with them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from kolm_build.core import cbor
from kolm_build.core.derivation import Derivation
from kolm_build.core.digest import Digest, RecordKind
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError, StoreError
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.building import Prepared

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """One build.

    Attributes:
        nodes: Node name to derivation, each after all that it needs.
        actions: Node name to ``reused``, ``cut-off``, ``built``, ``fetched`` or ``verified``.
    """

    nodes: Mapping[str, Digest] = field(default_factory=dict)
    actions: Mapping[str, str] = field(default_factory=dict)

    def to_value(self) -> dict[str, object]:
        """The plain value; an array keeps the order of the nodes."""
        return {
            "nodes": [[name, digest.raw] for name, digest in self.nodes.items()],
            "actions": dict(self.actions),
        }

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`."""
        fields = Fields(value)
        nodes = dict(fields.records("nodes", _node))
        actions = {str(name): str(action) for name, action in fields.table("actions").items()}
        fields.done()
        return cls(nodes=nodes, actions=actions)

    def derivations(self, store: LocalStore) -> Mapping[str, Derivation] | None:
        """The derivations by node name; None where the store has lost one."""
        try:
            return {name: store.derivation(digest) for name, digest in self.nodes.items()}
        except StoreError:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Builds:
    """The last build of a project, and the last one before it that was different."""

    last: Remembered = field(default_factory=Remembered)
    before: Remembered = field(default_factory=Remembered)


def recall(lock: Path, store: LocalStore) -> Builds:
    """The builds that `store` remembers of the project whose lock is `lock`."""
    data = store.memo_get(_key(lock))
    if data is None:
        return Builds()
    try:
        fields = Fields(cbor.decode(data))
        fields.version(VERSION)
        return Builds(
            last=fields.record("last", Remembered.from_value),
            before=fields.record("before", Remembered.from_value),
        )
    except InvalidRecordError:
        return Builds()


def remember(prepared: Prepared, actions: Mapping[Digest, str], store: LocalStore) -> None:
    """Note a build that went well; one of the same nodes goes on with the last."""
    instance = prepared.instance
    names = {digest: name for name, digest in instance.digests.items()}
    now = Remembered(
        nodes=instance.digests,
        actions={names[digest]: action for digest, action in actions.items()},
    )
    known = recall(prepared.project.lock_file, store)
    before = known.last
    if known.last.nodes == now.nodes:
        now, before = _gone_on(known.last, now), known.before
    if now != known.last:
        value = {"v": VERSION, "last": now.to_value(), "before": before.to_value()}
        store.memo_put(_key(prepared.project.lock_file), cbor.encode(value))


def _gone_on(first: Remembered, second: Remembered) -> Remembered:
    """Two builds of the same nodes as one: what the second found made, the first may have made."""
    made = {name: action for name, action in first.actions.items() if action != "reused"}
    return replace(second, actions={**first.actions, **second.actions, **made})


def add_root(prepared: Prepared, store: LocalStore) -> None:
    """Keep from the collector what the project's lock describes, as long as the lock is there."""
    project = prepared.project
    store.add_root(
        f"{project.recipe.name[:48]}-{_key(project.lock_file).hex[:8]}",
        trees=[*prepared.instance.contents, *prepared.lock.code.values()],
        derivations=prepared.instance.digests.values(),
        path=project.lock_file,
    )


def _key(lock: Path) -> Digest:
    return Digest.of_record(cbor.encode(["builds", os.fsencode(lock)]), RecordKind.MEMO)


def _node(value: object) -> tuple[str, Digest]:
    match value:
        case [str(name), bytes(raw)]:
            return name, Digest(raw)
        case _:
            raise InvalidRecordError("not a node and a derivation")
