"""``minilm``: distillation of attention relations (arXiv:2012.15828, equations 4 to 6)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch.nn.functional import cross_entropy

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._bounds import count
from kolm_build.steps._objective import Share
from kolm_build.steps._sequences import Continuation, answer_logits
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._teaching import (
    TeachingObjective,
    divergence,
    take_hard_weight,
    take_temperature,
)

KINDS = ("q_proj", "k_proj", "v_proj")


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class MiniLm(TeachingObjective):
    """KL(teacher's relations || student's), of queries, keys and values of the last layers.

    A relation is softmax(A A' / sqrt(d)) over a sequence's places, of each relation head, so the
    models may have any sizes.

    Args:
        hard_weight: The share of the likelihood of the answers.
        temperature: Of the relations.
        relation_heads: Into how many heads the queries, keys and values are cut.
    """

    def __init__(self, hard_weight: float, temperature: float, relation_heads: int) -> None:
        super().__init__(hard_weight, temperature)
        self.relation_heads = relation_heads

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(
            take_hard_weight(fields, "0.5"),
            take_temperature(fields),
            count(fields, "relation_heads", 4),
        )

    def share(self, network: Any, example: Continuation, context: int) -> Share:
        """The row's part of the mean."""
        with torch.no_grad(), watched(self.teacher.network) as theirs:
            answer_logits(self.teacher.network, example)
        with watched(network) as ours:
            logits, ids = answer_logits(network, example)
        distance = sum(self._between(ours[kind], theirs[kind]) for kind in KINDS)
        distance = distance * (example.tokens / context)
        nll = cross_entropy(logits, ids, reduction="sum") / context
        loss = (1 - self.hard_weight) * distance + self.hard_weight * nll
        return Share(loss=loss, figures=(distance.detach(), nll.detach()))

    def _between(self, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        student, teacher = (
            relations(one, self.relation_heads) / self.temperature for one in (ours, theirs)
        )
        return self.distance(
            torch.log_softmax(student, dim=-1), torch.log_softmax(teacher, dim=-1)
        ).mean()

    def distance(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Equation 5, at each head and place."""
        return divergence(teacher, student)


def relations(values: torch.Tensor, heads: int) -> torch.Tensor:
    """A A' / sqrt(d) of each head, shape (heads, places, places); `values` is (places, width).

    Raises:
        InvalidRecordError: The heads do not divide the width.
    """
    places, width = values.shape
    if width % heads:
        raise InvalidRecordError(
            "relation heads that do not divide a layer",
            where="relation_heads",
            expected=f"a divisor of {width}",
            actual=str(heads),
        )
    cut = values.float().reshape(places, heads, width // heads).transpose(0, 1)
    scale = torch.rsqrt(cut.new_tensor(float(width // heads)))
    return (cut @ cut.transpose(1, 2)) * scale


@contextmanager
def watched(network: Any) -> Iterator[dict[str, torch.Tensor]]:
    """What the last layer's projections give while the context lasts, each (places, width)."""
    found: dict[str, torch.Tensor] = {}

    def keep(kind: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            found[kind] = output[0]

        return hook

    hooks = [last(network, kind).register_forward_hook(keep(kind)) for kind in KINDS]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def last(network: Any, kind: str) -> Any:
    """The projection `kind` of the last layer.

    Raises:
        InvalidRecordError: The architecture has no layers of that name.
    """
    pattern = re.compile(rf".*\.layers\.(\d+)\..*\.?{kind}")
    layers = {
        int(match[1]): module
        for name, module in network.named_modules()
        if (match := pattern.fullmatch(name))
    }
    if not layers:
        raise InvalidRecordError(
            "the architecture has no such projections", expected="layers.N.self_attn." + kind
        )
    return layers[max(layers)]


TAKE: Take = MiniLm.take
