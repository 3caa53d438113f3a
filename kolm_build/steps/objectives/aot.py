"""``aot``: alignment by optimal transport, paired (arXiv:2406.05882, equation 10)."""

from __future__ import annotations

from collections.abc import Sequence

from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._pairs import Side
from kolm_build.steps.objectives._sorted_pairs import Part, SortedObjective, ranked


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class Aot(SortedObjective):
    """The policy's sorted differences log p_w - log p_l against the reference's sorted ones."""

    def parts(self, sides: Sequence[tuple[Side, Side]]) -> Sequence[Part]:
        """The k-th smallest difference of the policy meets the k-th smallest of the reference."""
        policy = [chosen.log_p - rejected.log_p for chosen, rejected in sides]
        reference = [
            chosen.reference.sum() - rejected.reference.sum() for chosen, rejected in sides
        ]
        made: dict[int, Part] = {}
        for mine, theirs in zip(ranked(policy), ranked(reference), strict=True):
            loss, slope = self.pairwise(policy[mine] - reference[theirs], len(sides))
            made[mine] = Part(chosen=slope, rejected=-slope, loss=loss)
        return [made[at] for at in range(len(sides))]


TAKE: Take = Aot.take
