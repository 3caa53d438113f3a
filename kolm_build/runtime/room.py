"""Room for keys and values, made ahead: a token more is written to its place, nothing is moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kolm_build.runtime.decoder_config import DecoderConfig
from kolm_build.runtime.generate import Prefix
from kolm_build.runtime.rotary import Tables, Turn

_MORE = 64
"""Least tokens of room behind what is read; half of what was there, where that is more."""

Pair = tuple[torch.Tensor, torch.Tensor]
"""Keys and values."""


class Room:
    """The keys and values of what a `Decoder` has read, rows of one length.

    Args:
        config: The network's.
        rows: Prompts.
        dtype: What the network computes in. What is kept here has that dtype's values, as float32.
    """

    def __init__(self, config: DecoderConfig, rows: int, dtype: torch.dtype) -> None:
        self.length = 0
        """Tokens of each row."""
        self.config = config
        self.dtype = dtype
        self._room = torch.empty(2 * config.layers, rows, config.key_heads, 0, config.head_width)
        self._places: tuple[torch.Tensor, ...] = ()
        self._seen: tuple[torch.Tensor, ...] = ()

    @property
    def rows(self) -> int:
        """Prompts."""
        return int(self._room.shape[1])

    def begin(self, tokens: int) -> None:
        """Count `tokens` more of each row, which are put next."""
        start, end = self.length, self.length + tokens
        if end > self._room.shape[3]:
            self._enlarge(end + max(_MORE, start // 2))
        self.length = end
        self._places = self._room[:, :, :, start:end].transpose(2, 3).unbind()
        self._seen = self._room[:, :, :, :end].unbind()

    def _enlarge(self, size: int) -> None:
        before = self._room
        self._room = before.new_empty(*before.shape[:3], size, before.shape[4])
        self._room[:, :, :, : self.length] = before[:, :, :, : self.length]

    def put(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> Pair:
        """Put the new tokens of a layer, [rows, tokens, heads, width].

        Returns:
            Keys and values from the first token on, [rows, heads, tokens, width].
        """
        at = 2 * layer
        self._places[at].copy_(keys)
        self._places[at + 1].copy_(values)
        return self._seen[at], self._seen[at + 1]

    def turn(self, tables: Tables, tokens: int) -> Turn:
        """The tables of the tokens begun."""
        return tables.turn(slice(self.length - tokens, self.length), self.rows)

    def mask(self, tokens: int) -> torch.Tensor | None:
        """Which keys each token begun sees, where neither all nor those of a prompt from its start.

        [tokens, keys], boolean.
        """
        start = self.length - tokens
        if start == 0 or tokens == 1:
            return None
        return torch.ones(tokens, self.length, dtype=torch.bool).tril(start)

    def everything(self) -> torch.Tensor:
        """Keys and values of the layers in turn, [2 · layers, rows, heads, length, width]."""
        return self._room[:, :, :, : self.length]

    def keep(self) -> KeptRoom:
        """What was read, in the network's dtype; it stays as it is while more is read."""
        return KeptRoom(self.config, self.everything().to(self.dtype))


@dataclass(frozen=True, slots=True)
class KeptRoom:
    """Keys and values of a prompt that a `Decoder` has read.

    Attributes:
        config: The network's.
        tensors: [2 · layers, rows, heads, tokens, width], in the network's dtype.
    """

    config: DecoderConfig
    tensors: torch.Tensor

    @property
    def tokens(self) -> int:
        """How many tokens they are of."""
        return self.tensors.shape[3]

    def started(self, tokens: int) -> Room:
        """Room with the first `tokens`."""
        found = Room(self.config, self.tensors.shape[1], self.tensors.dtype)
        found.begin(tokens)
        found.everything().copy_(self.tensors[:, :, :, :tokens])
        return found


class RaggedRoom:
    """The keys and values of rows of several lengths, continued a token at a time.

    Args:
        rooms: Rows that were read, of one length each.
        more: Most tokens that each row may still get.
    """

    def __init__(self, rooms: Sequence[Room], more: int) -> None:
        parts = [room.everything() for room in rooms]
        lengths = [part.shape[3] for part in parts for _ in range(part.shape[1])]
        self._at = torch.tensor(lengths) - 1
        """The place of each row's last token."""
        self._numbers = torch.arange(len(lengths))
        self._end = max(lengths)
        first = parts[0]
        size = self._end + more
        self._room = first.new_zeros(len(first), len(lengths), first.shape[2], size, first.shape[4])
        for row, part in zip(_starts(parts), parts, strict=True):
            self._room[:, row : row + part.shape[1], :, : part.shape[3]] = part

    @property
    def rows(self) -> int:
        """Prompts."""
        return len(self._numbers)

    def begin(self, tokens: int) -> None:
        """Count one token more of each row, which is put next."""
        assert tokens == 1
        self._at = self._at + 1
        self._end += 1

    def put(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> Pair:
        """Put the new token of a layer, [rows, 1, heads, width].

        Returns:
            Keys and values up to the longest row, [rows, heads, tokens, width].
        """
        kept_keys, kept_values = self._room[2 * layer], self._room[2 * layer + 1]
        kept_keys[self._numbers, :, self._at] = keys[:, 0]
        kept_values[self._numbers, :, self._at] = values[:, 0].float()
        return kept_keys[:, :, : self._end], kept_values[:, :, : self._end]

    def turn(self, tables: Tables, tokens: int) -> Turn:
        """The tables of the tokens begun."""
        assert tokens == 1
        return tables.turn_each(self._at, self._end)

    def mask(self, tokens: int) -> torch.Tensor:
        """Which keys each row sees with its token, [rows, 1, 1, keys], boolean.

        Keys behind a row's own are hidden; under `portable-1` that changes no bit (NUM-42).
        """
        assert tokens == 1
        return (torch.arange(self._end) <= self._at[:, None])[:, None, None]


def _starts(parts: Sequence[torch.Tensor]) -> list[int]:
    """The number of each part's first row."""
    found, at = [], 0
    for part in parts:
        found.append(at)
        at += part.shape[1]
    return found


def joined_rooms(prefixes: Sequence[Prefix], *, room: int) -> Prefix:
    """Prompts that one `Decoder` has read as one; a single one as it is.

    Args:
        prefixes: The prompts, of one length each; they are copied.
        room: Most tokens of a continuation.

    Determinism:
        Under `portable-1` every row is continued as it is alone, bit for bit.
    """
    if len(prefixes) == 1:
        return prefixes[0]
    return Prefix(
        network=prefixes[0].network,
        cache=RaggedRoom([prefix.cache for prefix in prefixes], room),
        logits=torch.cat([prefix.logits for prefix in prefixes]),
    )
