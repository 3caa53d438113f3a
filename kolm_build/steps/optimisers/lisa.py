"""``lisa``: AdamW over a few layers drawn anew every period (arXiv:2403.17919, algorithm 1).

What lies outside the layers, embeddings and output head, is trained all the time. Gradients of all
layers are computed and those of frozen ones put away: the numbers are the paper's, its saving of
memory is not made.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Self

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._bounds import count
from kolm_build.steps.optimisers._blocks import Blocks


class Lisa(Blocks):
    """Some layers at a time, by lot.

    Args:
        layers: How many.
        interval: Optimiser steps between two draws.
    """

    def __init__(self, layers: int, interval: int) -> None:
        super().__init__(interval)
        self.layers = layers

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The optimiser that `fields` describe."""
        return cls(count(fields, "lisa_layers", 2), count(fields, "lisa_interval", 20))

    def active(self, period: int, layers: Sequence[int], seed: int) -> frozenset[int]:
        """Those whose lots of the period are least (ADPT-72)."""
        if self.layers > len(layers):
            raise InvalidRecordError(
                "the model has fewer layers",
                where="lisa_layers",
                expected=f"at most {len(layers)}",
                actual=str(self.layers),
            )

        def lot(layer: int) -> bytes:
            return sha256(f"kolm_build 2026 lisa v1 {seed} {period} {layer}".encode()).digest()

        return frozenset(sorted(layers, key=lot)[: self.layers])
