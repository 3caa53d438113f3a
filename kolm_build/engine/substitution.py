"""Outputs that come from others instead of from a step (spec/substituter.md).

The bytes of an output prove themselves; which bytes they should be is known from the store's own
claims, from the lock, or from claims of others that the reader's trust file says to believe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kolm_build.core.derivation import Derivation
from kolm_build.core.digest import Digest
from kolm_build.core.plan import Key, Substitute
from kolm_build.engine.events import OnEvent, Progress, Substituted
from kolm_build.engine.protocol import Store, Substitutes


@dataclass(frozen=True, slots=True)
class Lookup:
    """What is claimed: by the store, and for what it knows nothing of, by others.

    Attributes:
        store: The store.
        substitutes: The others, if there are any.
    """

    store: Store
    substitutes: Substitutes | None

    def __call__(self, keys: Sequence[Key]) -> Mapping[Key, tuple[Digest, ...]]:
        """The contents claimed for each key; a key without any is left out."""
        known = self.store.contents_of(keys)
        unknown = [key for key in keys if key not in known]
        if not unknown or self.substitutes is None:
            return known
        return {**known, **self.substitutes.contents_of(unknown)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Substitution:
    """Copies what a plan says.

    Attributes:
        store: Where to.
        substitutes: Where from.
        on_event: Told what happens.
    """

    store: Store
    substitutes: Substitutes
    on_event: OnEvent

    def carry_out(self, action: Substitute) -> bool:
        """Whether all that the action names was copied."""
        contents = dict(action.contents)
        return self.copy(action.name, contents, [contents[name] for name in action.missing])

    def bring(self, derivation: Derivation, key: Digest, contents: Mapping[str, Digest]) -> bool:
        """Whether all outputs of a derivation are here, copied where they were not.

        Args:
            derivation: As the lock has it.
            key: Its resolved digest.
            contents: What the outputs are claimed to be, every one of them.
        """
        trees = set(contents.values())
        if not self.copy(derivation.name, contents, sorted(trees - self.store.pin(trees))):
            return False
        self.substitutes.keep(key, self.store.put_derivation(derivation))
        return True

    def copy(self, node: str, contents: Mapping[str, Digest], trees: Sequence[Digest]) -> bool:
        """Whether all of `trees`, outputs of `node`, were copied."""
        sources: dict[str, None] = {}
        count = 0
        for tree in trees:
            arrived = self.substitutes.fetch(
                tree, lambda done, total: self._tell(node, done, total)
            )
            if arrived is None:
                return False
            sources[arrived.source] = None
            count += arrived.bytes_fetched
        self.on_event(
            Substituted(node=node, contents=contents, sources=tuple(sources), bytes_fetched=count)
        )
        return True

    def _tell(self, node: str, done: int, total: int) -> None:
        self.on_event(Progress(node=node, done=done, total=total, unit="byte"))
