"""GPTQ: each column's rounding error is made good by the columns that come after it.

Source: arXiv:2210.17323, with the order of arXiv's reference code ("act order") made static: the
columns that matter most, by the Hessian's diagonal, are rounded first, while groups and scales stay
those of the file. Rows do not influence one another, so a row for which plain rounding turns out
better over the calibration rows keeps it: no layer is ever worse than rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kolm_build.core.quantise_choices import Order
from kolm_build.errors import NotFiniteError
from kolm_build.numerics.quantised import Quantised, Scales, nearest, values
from kolm_build.steps.quantisation.calibration import Block, Progress, Stage, Tokens
from kolm_build.steps.quantisation.results import (
    Calibrated,
    Results,
    round_blocks,
    squared_outputs,
)
from kolm_build.steps.quantisation.rounding import Columns, Grids
from kolm_build.steps.quantisation.triangular import inverse_factor

COLUMNS = 128
"""Columns whose errors are spread over the rest of the matrix at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a recipe may say of GPTQ.

    Attributes:
        damping: Share of the mean of the Hessian's diagonal that is added to it.
        act_order: ``static``: columns with large inputs first; ``none``: as they lie.
    """

    damping: Fraction = Fraction(1, 100)
    act_order: Order = "static"


def quantise(
    network: Any,
    sequences: Sequence[Tokens],
    grids: Grids,
    settings: Settings,
    on_block: Progress | None = None,
) -> Calibrated:
    """The linear layers that `grids` names, rounded by GPTQ.

    Args:
        network: A causal language model of transformers; it is not changed.
        sequences: What it is calibrated with.
        grids: The grid of each layer.
        settings: The method's own settings.
        on_block: Is told of every decoder layer that is done.

    Raises:
        InvalidDataError: A layer is never reached by the calibration rows.
        NotFiniteError: A layer's inputs are not finite, or its Hessian not positive definite.

    Determinism:
        Bitwise the same on every machine under `portable-1`.
    """

    def round_block(block: Block, stages: Sequence[Stage], results: Results) -> None:
        for stage in stages:
            _quantise_stage(block, stage, grids, settings, results)

    return round_blocks(network, sequences, grids, on_block, by=round_block).calibrated()


def _quantise_stage(
    block: Block, stage: Stage, grids: Grids, settings: Settings, results: Results
) -> None:
    """Round the layers of `stage` that are to be quantised: one Hessian for all of them."""
    weights = block.weights(name for name in stage.layers if name in grids.by_layer)
    seen = block.statistics(stage)
    try:
        problem = Problem.of(seen.gram, settings)
    except NotFiniteError as error:
        raise error.under(stage.layers[0]) from None
    for name, chosen in grids.scales(weights).items():
        plain = nearest(weights[name], chosen)
        found = problem.better_rows(weights[name], plain)
        results.add(block, name, found, plain=values(plain), seen=seen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The least squares problem of the layers that read one input.

    Attributes:
        gram: Sum of x x' over the tokens, shape (columns, columns), float32.
        factor: Upper triangular U with U' U = inverse of the damped gram in the order of `order`,
            float32.
        order: Which column comes at which place, shape (columns,).
    """

    gram: torch.Tensor
    factor: torch.Tensor
    order: torch.Tensor

    @classmethod
    def of(cls, gram: NDArray[np.float64], settings: Settings) -> Problem:
        """The problem of inputs whose `gram` this is.

        A column whose inputs are all zero stands alone: it is rounded to nearest.

        Raises:
            NotFiniteError: `gram` holds a NaN or an infinity, or is not positive definite.
        """
        check_hessian(gram)
        damped = damp(gram, settings.damping)
        order = _order(np.diagonal(gram), settings.act_order)
        factor = inverse_factor(damped[np.ix_(order, order)])
        return cls(
            gram=torch.from_numpy(gram.astype(np.float32)),
            factor=torch.from_numpy(factor.astype(np.float32)),
            order=torch.from_numpy(order),
        )

    def better_rows(self, weight: torch.Tensor, plain: Quantised) -> Quantised:
        """`weight` by GPTQ on the scales of `plain`, and the rows of `plain` that are better."""
        found = Quantised(codes=self.solve(weight, plain.scales), scales=plain.scales)
        loss = squared_outputs(weight - values(found), self.gram)
        worse = loss > squared_outputs(weight - values(plain), self.gram)
        codes = torch.where(worse[:, None], plain.codes, found.codes)
        return Quantised(codes=codes, scales=plain.scales)

    def solve(self, weight: torch.Tensor, chosen: Scales) -> torch.Tensor:
        """Codes on the scales `chosen` for `weight`, shape (rows, columns)."""
        left = weight.T[self.order].contiguous()  # a column lies in one piece
        columns = Columns.of(chosen)
        parts = []
        for start in range(0, len(left), COLUMNS):
            end = min(start + COLUMNS, len(left))
            codes, errors = self._solve_part(left[start:end], start, columns)
            left[end:] -= self.factor[start:end, end:].T @ errors
            parts.append(codes)
        made = torch.cat(parts)
        codes = torch.empty_like(made)
        codes[self.order] = made
        return codes.T.contiguous()

    def _solve_part(
        self, left: torch.Tensor, start: int, columns: Columns
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Round the columns `left`: their codes, and their errors over the factor's diagonal."""
        errors = torch.empty_like(left)
        end = start + len(left)
        factor = self.factor[start:end, start:end]
        diagonal = factor.diagonal().tolist()
        made = []
        for at, column in enumerate(self.order[start:end].tolist()):
            codes, found = columns.rounded(left[at], column)
            made.append(codes)
            errors[at] = (left[at] - found) / diagonal[at]
            left[at + 1 :] -= factor[at, at + 1 :, None] * errors[at]
        return torch.stack(made), errors


def check_hessian(gram: NDArray[np.float64]) -> None:
    """Refuse a Hessian that is not finite.

    Raises:
        NotFiniteError: It names the first such element.
    """
    bad = np.argwhere(~np.isfinite(gram))
    if len(bad):
        row, column = bad[0]
        raise NotFiniteError(
            "a Hessian is not finite",
            where=f"[{row}, {column}]",
            expected="finite numbers",
            actual=str(gram[row, column]),
            advice="Look for weights or inputs that are not finite.",
        )


def damp(gram: NDArray[np.float64], damping: Fraction) -> NDArray[np.float64]:
    """`gram` with `damping` times the mean of its diagonal added to that; 1 where it is 0."""
    damped = gram.copy()
    diagonal = np.diagonal(gram)
    mean = np.add.accumulate(diagonal)[-1] / len(diagonal)
    np.fill_diagonal(damped, np.where(diagonal == 0, 1.0, diagonal) + float(damping) * mean)
    return damped


def _order(diagonal: NDArray[np.float64], order: Order) -> NDArray[np.intp]:
    if order == "none":
        return np.arange(len(diagonal))
    return np.argsort(-diagonal, kind="stable")
