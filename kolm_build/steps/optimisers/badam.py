"""``badam``: AdamW over one layer after the other (arXiv:2404.02827, algorithm 1).

The blocks are the layers, from the first to the last and again; moments are dropped when a block is
left. What lies outside the layers is not trained. Gradients of all layers are computed: the numbers
are the paper's, its saving of memory is not made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import count
from kolm_build.steps.optimisers._blocks import Blocks


class BAdam(Blocks):
    """One layer at a time, in turn."""

    forgets = True
    outside = False

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The optimiser that `fields` describe."""
        return cls(count(fields, "badam_interval", 50))

    def active(self, period: int, layers: Sequence[int], seed: int) -> frozenset[int]:
        """The layer whose turn it is."""
        del seed
        return frozenset({layers[period % len(layers)]})
