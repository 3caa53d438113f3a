"""Tokens that stand before every row, and are no words: trained vectors (GEN-56 to 58).

Of prefix tuning they are keys and values of every layer; of prompt tuning embeddings, whose keys
and values are made once. Either way a network that is asked for a row begins with what is there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from kolm_build.core.attached import PREFIX, Virtual

NAME = "beginning"
"""The child of a network that holds them."""

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, shape (1, heads, tokens, size of a head)."""


class Beginning(nn.Module):
    """The virtual tokens of a network.

    Args:
        said: What they are.
        vectors: The trained vectors, shape (tokens, …).
    """

    def __init__(self, said: Virtual, vectors: torch.Tensor) -> None:
        super().__init__()
        self.said = said
        self.vectors = nn.Parameter(vectors, requires_grad=False)
        self._layers: Layers | None = None

    def before(
        self, network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """What `network` is called with: where it is given no keys and values, those of here."""
        if kwargs.get("past_key_values") is not None:
            return None
        if self._layers is None:
            self._layers = self._made(network)
        rows = len(kwargs["input_ids"])
        return args, {**kwargs, "past_key_values": _cache(network, self._layers, rows)}

    def _made(self, network: Any) -> Layers:
        vectors = self.vectors.to(network.dtype)
        if self.said.kind == PREFIX:
            return self._split(vectors)
        with torch.no_grad():
            seen = network.forward(inputs_embeds=vectors[None], use_cache=True, logits_to_keep=1)
        return [(layer.keys, layer.values) for layer in seen.past_key_values.layers]

    def _split(self, vectors: torch.Tensor) -> Layers:
        """The vectors as PEFT reads them: of a token all layers, of a layer keys, then values."""
        said = self.said
        shape = (said.tokens, said.layers, 2, said.heads, said.width // said.heads)
        layers = vectors.view(shape).permute(1, 2, 3, 0, 4)
        return [(keys[None], values[None]) for keys, values in layers]


def begin_with(network: Any, said: Virtual, vectors: torch.Tensor) -> None:
    """Let every row that `network` reads begin with `vectors`."""
    made = Beginning(said, vectors)
    network.add_module(NAME, made)
    network.register_forward_pre_hook(made.before, with_kwargs=True)


def virtual_tokens(network: Any) -> int:
    """How many tokens stand before every row that `network` reads."""
    found = getattr(network, NAME, None)
    return found.said.tokens if isinstance(found, Beginning) else 0


def _cache(network: Any, layers: Layers, rows: int) -> DynamicCache:
    """A cache of its own for so many `rows`; reading on copies what is put in."""
    cache = DynamicCache(config=network.config)
    for number, (keys, values) in enumerate(layers):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), number)
    return cache
