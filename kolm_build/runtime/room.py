"""Room for keys and values, made ahead: a token more is written to its place, nothing is moved."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.cache_utils import DynamicLayer

_MORE = 64
"""Least tokens of room behind what is read; half of what was there, where that is more."""


class Room:
    """The keys and values of what a `Decoder` has read.

    Args:
        layers: Layers of the network.
        rows: Prompts.
        heads: Heads of keys.
        width: Size of a head.
        dtype: What the network computes in. What is kept here has that dtype's values, as float32.
    """

    def __init__(
        self, *, layers: int, rows: int, heads: int, width: int, dtype: torch.dtype
    ) -> None:
        self.length = 0
        """Tokens of each row."""
        self._dtype = dtype
        self._room = torch.empty(2 * layers, rows, heads, 0, width)

    def grown(self, tokens: int) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """Count `tokens` more of each row.

        Returns:
            Where the keys of the first layer, its values, those of the second and so on are to be
            put, [rows, tokens, heads, width]; and all from the first token on, [rows, heads,
            length, width].
        """
        start, end = self.length, self.length + tokens
        if end > self._room.shape[3]:
            self._enlarge(end + max(_MORE, start // 2))
        self.length = end
        places = self._room[:, :, :, start:end].transpose(2, 3)
        return places.unbind(), self._room[:, :, :, :end].unbind()

    def _enlarge(self, size: int) -> None:
        before = self._room
        self._room = before.new_empty(*before.shape[:3], size, before.shape[4])
        self._room[:, :, :, : self.length] = before[:, :, :, : self.length]

    def fill(self, layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Take over keys and values of each layer, [rows, heads, tokens, width]."""
        flat = [one for pair in layers for one in pair]
        places, _ = self.grown(flat[0].shape[2])
        for place, one in zip(places, flat, strict=True):
            place.copy_(one.transpose(1, 2))

    @property
    def layers(self) -> list[DynamicLayer]:
        """Copies of keys and values by layer, in the network's dtype, as transformers has them."""
        made = []
        kept = self._room[:, :, :, : self.length].to(self._dtype).unbind()
        for keys, values in zip(kept[::2], kept[1::2], strict=True):
            layer = DynamicLayer()
            layer.update(keys, values)
            made.append(layer)
        return made

    def get_seq_length(self) -> int:
        """Tokens of each row; the name is that of transformers' caches."""
        return self.length
