"""``galore``: Adam in the subspace of a gradient's leading vectors (arXiv:2403.03507, algorithm 2).

R = P'G for the `galore_rank` leading singular vectors P of the gradient's shorter side, made anew
every `galore_interval` steps; Adam's moments are those of R, and W moves by rate x scale x P N. A
matrix whose shorter side is not above the rank, and whatever is no matrix, is trained by AdamW: a
projection on the whole space would turn it alone, which is no saving.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from transformers import TrainerCallback

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import count, decimal
from kolm_build.steps._factorisation import leading_svd, samples
from kolm_build.steps._training_params import TrainingParams
from kolm_build.steps.optimisers._count import Counter
from kolm_build.steps.optimisers._groups import BETAS, EPSILON, groups, trained
from kolm_build.steps.optimisers._optimiser import Optimiser


class GaLoreAdamW(torch.optim.Optimizer):
    """AdamW whose moments of large matrices are those of a projection.

    Args:
        grouped: The parameters in groups.
        rate: The rate.
        rank: Vectors of a projection.
        interval: Steps between two projections.
        scale: What a projected change is multiplied by.
    """

    def __init__(
        self,
        grouped: list[dict[str, Any]],
        rate: float,
        *,
        rank: int,
        interval: int,
        scale: float,
    ) -> None:
        super().__init__(grouped, {"lr": rate, "weight_decay": 0.0})
        self._rank, self._interval, self._scale = rank, interval, scale
        self.done = 0
        self._powers = [(1.0, 1.0)]  # of the betas, by products: a C library's are not portable

    def step(self, closure: Any = None) -> None:
        """One step of every parameter with a gradient."""
        assert closure is None, "the trainer gives none"
        while len(self._powers) <= self.done + 1:
            first, second = self._powers[-1]
            self._powers.append((first * BETAS[0], second * BETAS[1]))
        with torch.no_grad():
            for group in self.param_groups:
                for one in group["params"]:
                    if one.grad is not None:
                        self._move(one, group)
        self.done += 1

    def _move(self, one: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[one]
        projects = one.ndim == 2 and min(one.shape) > self._rank
        basis = self._basis(one.grad, state) if projects else None
        gradient = one.grad if basis is None else _down(one.grad, basis)
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(gradient)
            state["exp_avg_sq"] = torch.zeros_like(gradient)
        state["exp_avg"].lerp_(gradient, 1 - BETAS[0])
        state["exp_avg_sq"].mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        first, second = self._powers[self.done + 1]
        root = (state["exp_avg_sq"].sqrt() / math.sqrt(1 - second)).add_(EPSILON)
        change = (state["exp_avg"] / root) / (1 - first)
        if basis is not None:
            change = _up(change, basis, one.shape) * self._scale
        one.mul_(1 - group["lr"] * group["weight_decay"])
        one.add_(change, alpha=-group["lr"])

    def _basis(self, gradient: Any, state: dict[str, Any]) -> torch.Tensor:
        """The orthonormal vectors to project on, shape (shorter side, rank)."""
        stale = self.done % self._interval == 0
        if stale or not bool((state["basis"] != 0).any()):
            wide = gradient if gradient.shape[0] <= gradient.shape[1] else gradient.T
            noise = torch.randn(wide.shape[1], samples(wide, self._rank))
            state["basis"], _, _ = leading_svd(wide, self._rank, noise)
        basis: torch.Tensor = state["basis"]
        return basis


def _down(gradient: Any, basis: torch.Tensor) -> torch.Tensor:
    """The projected gradient."""
    wide = gradient.shape[0] <= gradient.shape[1]
    return basis.T @ gradient if wide else gradient @ basis


def _up(change: torch.Tensor, basis: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A projected change as one of a matrix of `shape`."""
    return basis @ change if shape[0] <= shape[1] else change @ basis.T


class GaLore(Optimiser):
    """AdamW over projected gradients.

    Args:
        rank: Vectors of a projection.
        interval: Steps between two projections.
        scale: What a projected change is multiplied by.
    """

    def __init__(self, rank: int, interval: int, scale: float) -> None:
        self.rank, self.interval, self.scale = rank, interval, scale

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The optimiser that `fields` describe."""
        return cls(
            count(fields, "galore_rank", 128),
            count(fields, "galore_interval", 200),
            decimal(fields, "galore_scale", "0.25", least=0.0, most=1000.0),
        )

    def make(self, network: Any, training: TrainingParams) -> torch.optim.Optimizer:
        """The optimiser of what is trained."""
        grouped = groups(trained(network), training, lambda _name: 1.0)
        self._made = GaLoreAdamW(
            grouped,
            training.learning_rate,
            rank=self.rank,
            interval=self.interval,
            scale=self.scale,
        )
        return self._made

    def watchers(self) -> Sequence[TrainerCallback]:
        """What counts the steps."""
        return (Counter(self._made),)
