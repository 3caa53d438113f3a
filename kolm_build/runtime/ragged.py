"""Prompts of several lengths that are continued together, without padding on the left.

Each row of the cache holds its own tokens from its first place on, and what lies behind them is
hidden by the mask. Under `portable-1` a hidden key changes no bit (spec/numerics.md, NUM-42 and
NUM-43), so a row is continued as it would be alone; stock kernels promise no such thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from kolm_build.errors import BuildError
from kolm_build.runtime.generate import Prefix, next_logits


@dataclass(frozen=True, slots=True, kw_only=True)
class RaggedPrefix(Prefix):
    """Prompts of several lengths that a network has read, to be continued together.

    Attributes:
        cache: A `RaggedCache`.
    """

    def read(self, chosen: torch.Tensor) -> torch.Tensor:
        """What the network expects after one token more of each row; float32."""
        cache = self.cache
        where = {"position_ids": cache.lengths[:, None].clone(), "attention_mask": cache.mask()}
        found = next_logits(self, chosen, where)
        cache.advance()
        return found


def joined(prefixes: Sequence[Prefix], *, room: int) -> Prefix:
    """Prompts of several lengths as one, to be continued together; a single one as it is.

    Args:
        prefixes: Prompts that one network has read, each of one length; they are copied.
        room: Most tokens of a continuation.

    Determinism:
        Under `portable-1` every row is continued as it is alone, bit for bit.

    Raises:
        BuildError: The network's cache is not of a kind that can be joined.
    """
    if len(prefixes) == 1:
        return prefixes[0]
    return RaggedPrefix(
        network=prefixes[0].network,
        cache=RaggedCache([prefix.cache for prefix in prefixes], room=room),
        logits=torch.cat([prefix.logits for prefix in prefixes]),
    )


class RaggedCache(Cache):
    """Keys and values of rows of several lengths.

    Args:
        caches: The rows' caches, each of rows of one length, as reading them made them.
        room: How many tokens each row may still get.

    Raises:
        BuildError: A layer keeps something else than all keys and values.
    """

    def __init__(self, caches: Sequence[Any], *, room: int) -> None:
        parts = [(len(cache.layers[0].keys), cache.get_seq_length()) for cache in caches]
        self.lengths = torch.tensor([length for rows, length in parts for _ in range(rows)])
        """Number of tokens of each row, shape (rows,)."""
        most = max(length for _, length in parts)
        super().__init__(
            layers=[
                _RaggedLayer(layers, self.lengths, size=most + room)
                for layers in zip(*(cache.layers for cache in caches), strict=True)
            ]
        )

    def mask(self) -> torch.Tensor:
        """Which keys each row sees with its next token, shape (rows, 1, 1, keys), boolean."""
        places = torch.arange(int(self.lengths.max()) + 1)
        return (places <= self.lengths[:, None])[:, None, None]

    def advance(self) -> None:
        """Count the token that every row has just got."""
        self.lengths += 1


class _RaggedLayer(CacheLayerMixin):
    """One layer's keys and values, shape (rows, heads, places, size of a head)."""

    is_sliding = False

    def __init__(
        self, layers: Sequence[CacheLayerMixin], lengths: torch.Tensor, *, size: int
    ) -> None:
        super().__init__()
        for layer in layers:
            if type(layer) is not DynamicLayer:
                raise BuildError(
                    "prompts of several lengths need a cache of all keys and values",
                    expected=DynamicLayer.__name__,
                    actual=type(layer).__name__,
                    advice="Set batch_size to 1 for this model.",
                )
        self._lengths = lengths
        self.keys = _joined([layer.keys for layer in layers], size)
        self.values = _joined([layer.values for layer in layers], size)
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is left to do."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_others: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put one token of each row after its others; keys and values up to the longest row."""
        rows = torch.arange(len(self._lengths))
        self.keys[rows, :, self._lengths] = key_states[:, :, 0]
        self.values[rows, :, self._lengths] = value_states[:, :, 0]
        end = int(self._lengths.max()) + 1
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Tokens of the longest row."""
        return int(self._lengths.max())

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of keys, and where they begin."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Most tokens of a row."""
        return int(self.keys.shape[2])

    def get_max_cache_shape(self) -> int:
        """The same, by the name that transformers 5.12 asks it by."""
        return self.get_max_length()


def _joined(parts: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    """`parts`, shapes (rows, heads, places, size of a head), below one another with room behind."""
    rows, heads, width = sum(map(len, parts)), parts[0].shape[1], parts[0].shape[3]
    joined = parts[0].new_zeros(rows, heads, size, width)
    at = 0
    for part in parts:
        joined[at : at + len(part), :, : part.shape[2]] = part
        at += len(part)
    return joined
