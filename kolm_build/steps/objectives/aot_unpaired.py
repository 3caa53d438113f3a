"""``aot-unpaired``: alignment by optimal transport, unpaired (arXiv:2406.05882, equation 9)."""

from __future__ import annotations

from collections.abc import Sequence

from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import Side
from kolm_build.steps.objectives._sorted_pairs import Part, SortedObjective, ranked


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class AotUnpaired(SortedObjective):
    """The sorted log ratios of the chosen answers against the sorted ones of the rejected."""

    def parts(self, sides: Sequence[tuple[Side, Side]]) -> Sequence[Part]:
        """The k-th smallest ratio of a chosen answer meets the k-th smallest of a rejected one."""
        won, lost = [one.ratio for one, _ in sides], [other.ratio for _, other in sides]
        first, second = ranked(won), ranked(lost)
        pairs = [
            self.pairwise(won[one] - lost[other], len(sides))
            for one, other in zip(first, second, strict=True)
        ]
        up = dict(zip(first, pairs, strict=True))
        down = dict(zip(second, pairs, strict=True))
        return [
            Part(chosen=up[at][1], rejected=-down[at][1], loss=up[at][0])
            for at in range(len(sides))
        ]


TAKE: Take = AotUnpaired.take
