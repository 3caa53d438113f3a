"""Prompts that were read before: what a new one begins with is not read again (GEN-30 to 32).

Under `portable-1` reading a prompt in parts gives the bits of reading it at once (spec/numerics.md,
NUM-42 and NUM-43), so the cache changes nothing but the time. Stock kernels promise no such thing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import compress, count
from operator import ne
from typing import Any, Protocol

MAX_TOKENS = 1 << 15
"""Most tokens of all prompts kept together."""


class Kept(Protocol):
    """The keys and values of a prompt that was read."""

    @property
    def tokens(self) -> int:
        """How many tokens they are of."""
        ...

    def started(self, tokens: int) -> Any:
        """What the network reads on from after the first `tokens`; what is kept stays as it is."""


Keep = Callable[[Any], Kept | None]
"""What is kept of a network's keys and values; None where they cannot be cut at a token."""


Read = Callable[[Any, Sequence[int]], Any]
"""Reads a prompt after what was read before; None for nothing."""


class PromptCache:
    """The keys and values of prompts, the oldest let go first.

    Args:
        read: Reads a prompt after what was read before, None for nothing; what it gives has that
            and the prompt as `cache`.
        keep: Takes what is kept from what it read.
        max_tokens: Most tokens of all prompts kept together.
    """

    def __init__(self, read: Read, keep: Keep, *, max_tokens: int = MAX_TOKENS) -> None:
        self._read = read
        self._keep = keep
        self._max_tokens = max_tokens
        self._kept: OrderedDict[tuple[int, ...], Kept] = OrderedDict()

    def read(self, ids: Sequence[int]) -> Any:
        """The prompt `ids`, read: what is known of its beginning is taken from before.

        Determinism:
            Under `portable-1` the logits and what follows are those of reading it all, bit for
            bit.
        """
        asked = tuple(ids)
        key, shared = self._longest(asked)
        start = None
        if shared:
            self._kept.move_to_end(key)
            start = self._kept[key].started(shared)
        prefix = self._read(start, asked[shared:])
        self._note(asked, prefix.cache)
        return prefix

    def _longest(self, ids: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        """The prompt kept that shares most with `ids`, and how many tokens; the last is read."""
        best: tuple[tuple[int, ...], int] = ((), 0)
        for key in self._kept:
            # Only one that agrees at the place after the best so far can share more.
            if key[best[1] : best[1] + 1] == ids[best[1] : best[1] + 1]:
                shared = _shared(key, ids[:-1])
                if shared > best[1]:
                    best = (key, shared)
        return best

    def _note(self, ids: tuple[int, ...], cache: Any) -> None:
        kept = self._keep(cache)
        if kept is None or kept.tokens != len(ids):
            return  # it holds what no token of a prompt made (GEN-58)
        self._kept[ids] = kept
        self._kept.move_to_end(ids)
        while sum(map(len, self._kept)) > self._max_tokens:
            self._kept.popitem(last=False)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next(compress(count(), map(ne, one, other)), min(len(one), len(other)))
