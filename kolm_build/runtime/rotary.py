"""Rotary positions: tables of cosines and sines, made by the formulas of transformers (GEN-50).

Each operation is the one that transformers calls, on the same numbers in the same order.
"""

from __future__ import annotations

from math import pi

import torch

from kolm_build.runtime.decoder_config import DecoderConfig, Rotary

_STEP = 512
"""Positions that tables grow by."""

Turn = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, [rows · tokens, heads · width], the sines of the first half negated."""


class Tables:
    """Rotary tables for each position, as far as anything was read.

    Args:
        config: The network's.
        dtype: What the network computes in.
    """

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        self._config = config
        self._heads = config.heads + config.key_heads
        self._cos = self._sin = torch.empty(0, config.head_width, dtype=dtype)

    def turn(self, at: slice, rows: int) -> Turn:
        """The tables of the positions `at` of each of `rows`, for the heads of q and k together."""
        self._reach(at.stop)
        return self._cos[at].repeat(rows, self._heads), self._sin[at].repeat(rows, self._heads)

    def turn_each(self, at: torch.Tensor, end: int) -> Turn:
        """The tables of one position of each row, `at`, all below `end`."""
        self._reach(end)
        cos, sin = self._cos.index_select(0, at), self._sin.index_select(0, at)
        return cos.repeat(1, self._heads), sin.repeat(1, self._heads)

    def _reach(self, end: int) -> None:
        if end > len(self._cos):
            self._make(end + -end % _STEP)

    def _make(self, end: int) -> None:
        # Here and not when the tables are made: now the arithmetic is the model's.
        turns = frequencies(self._config.rotary, self._config.head_width)
        angles = torch.arange(end)[:, None].float() * turns
        both = torch.cat((angles, angles), dim=-1)
        cos, sin = both.cos().to(self._cos.dtype), both.sin().to(self._cos.dtype)
        half = angles.shape[-1]
        self._cos, self._sin = cos, torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)


def frequencies(rotary: Rotary, width: int) -> torch.Tensor:
    """How fast each pair of a head's numbers turns, [width / 2], float32."""
    plain = 1.0 / (rotary.theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
    if rotary.kind == "linear":
        return plain / rotary.numbers["factor"]
    if rotary.kind == "llama3":
        return _llama3(plain, rotary)
    return plain


def _llama3(plain: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Long waves slower by a factor, those between smoothly so (Llama 3.1)."""
    factor, length = rotary.numbers["factor"], rotary.numbers["original_max_position_embeddings"]
    low, high = rotary.numbers["low_freq_factor"], rotary.numbers["high_freq_factor"]
    waves = 2 * pi / plain
    is_long, is_short = waves > length / low, waves < length / high
    slowed = torch.where(is_long, plain / factor, plain)
    smooth = (length / waves - low) / (high - low)
    between = (1 - smooth) * slowed / factor + smooth * slowed
    return torch.where(~is_short * ~is_long, between, slowed)
