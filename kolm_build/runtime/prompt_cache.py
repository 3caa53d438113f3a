"""Prompts that were read before: what a new one begins with is not read again (GEN-30 to 32).

Under `portable-1` reading a prompt in parts gives the bits of reading it at once (spec/numerics.md,
NUM-42 and NUM-43), so the cache changes nothing but the time. Stock kernels promise no such thing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from kolm_build.runtime.generate import Prefix, read_on, read_prompts

MAX_TOKENS = 1 << 15
"""Most tokens of all prompts kept together."""

Layers = tuple[tuple[torch.Tensor, torch.Tensor], ...]
"""Keys and values of each layer, shape (1, heads, tokens, size of a head)."""


class PromptCache:
    """The keys and values of prompts, the oldest let go first.

    Args:
        network: The network that reads.
        max_tokens: Most tokens of all prompts kept together.
    """

    def __init__(self, network: Any, *, max_tokens: int = MAX_TOKENS) -> None:
        self._network = network
        self._max_tokens = max_tokens
        self._kept: OrderedDict[tuple[int, ...], Layers] = OrderedDict()

    def read(self, ids: Sequence[int]) -> Prefix:
        """The prompt `ids`, read: what is known of its beginning is taken from before.

        Determinism:
            Under `portable-1` the logits and what follows are those of reading it all, bit for
            bit.
        """
        key, shared = self._longest(ids)
        if shared == 0:
            prefix = read_prompts(self._network, [ids])
        else:
            self._kept.move_to_end(key)
            start = _started(self._kept[key], shared)
            prefix = read_on(self._network, start, [ids[shared:]])
        self._keep(tuple(ids), prefix.cache)
        return prefix

    def _longest(self, ids: Sequence[int]) -> tuple[tuple[int, ...], int]:
        """The prompt kept that shares most with `ids`, and how many tokens; the last is read."""
        best: tuple[tuple[int, ...], int] = ((), 0)
        for key in self._kept:
            shared = _shared(key, ids[:-1])
            if shared > best[1]:
                best = (key, shared)
        return best

    def _keep(self, ids: tuple[int, ...], cache: Any) -> None:
        if any(type(layer) is not DynamicLayer for layer in cache.layers):
            return  # a layer that forgets keys cannot be cut at a token
        if cache.get_seq_length() != len(ids):
            return  # nor one that holds what no token of a prompt made (GEN-58)
        self._kept[ids] = tuple((layer.keys, layer.values) for layer in cache.layers)
        self._kept.move_to_end(ids)
        while sum(map(len, self._kept)) > self._max_tokens:
            self._kept.popitem(last=False)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count


def _started(layers: Layers, tokens: int) -> DynamicCache:
    """A cache of the first `tokens`; the ones kept stay as they are, since reading on copies."""
    cache = DynamicCache()
    for number, (keys, values) in enumerate(layers):
        cache.update(keys[:, :, :tokens], values[:, :, :tokens], number)
    return cache
