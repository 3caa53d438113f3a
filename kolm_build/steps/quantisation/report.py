"""What quantisation cost: bits, errors, outliers, the worst layers (spec/quantization.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import prod, sqrt

import torch

from kolm_build.numerics.quantised import Quantised, part, values
from kolm_build.steps.quantisation.layers import Chosen, Target
from kolm_build.steps.quantisation.methods import Loss
from kolm_build.steps.quantisation.params import QuantiseParams

VERSION = 1
OUTLIER = 8
"""From how many times the root mean square of its matrix on an element is an outlier."""

WORST = 10
PLACES = 6
BLOCK_ELEMENTS = 1 << 22
"""Elements of a matrix that are held in full precision at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What rounding one layer cost.

    Attributes:
        error: The norm of the difference over the norm of the weights; 0 where both are 0.
        outliers: Elements of `OUTLIER` times the root mean square or more, before rounding.
        peak: The largest magnitude over the root mean square, before rounding.
    """

    error: float
    outliers: int
    peak: float


def row_blocks(matrix: torch.Tensor) -> Iterator[slice]:
    """The rows of `matrix`, some millions of elements at a time."""
    rows = max(1, BLOCK_ELEMENTS // matrix.shape[1])
    return (slice(start, start + rows) for start in range(0, matrix.shape[0], rows))


def cost_of(weight: torch.Tensor, matrix: Quantised) -> Cost:
    """What it cost to make `matrix` of `weight`, float32.

    Squares of some rows are summed as NUM-20 says, and these sums in binary64, in order.
    """
    energy = sum(_energy(weight[rows]) for rows in row_blocks(weight))
    if energy == 0:
        return Cost(error=0.0, outliers=0, peak=0.0)
    mean = sqrt(energy / weight.numel())
    off, outliers = 0.0, 0
    for rows in row_blocks(weight):
        off += _energy(values(part(matrix, rows)) - weight[rows])
        outliers += int(torch.count_nonzero(weight[rows].abs() >= OUTLIER * mean))
    peak = float(weight.abs().amax()) / mean
    return Cost(error=sqrt(off / energy), outliers=outliers, peak=peak)


def _energy(numbers: torch.Tensor) -> float:
    return float((numbers * numbers).sum())


def report(
    params: QuantiseParams,
    chosen: Chosen,
    costs: Mapping[str, Cost],
    losses: Mapping[str, Loss],
    *,
    tensor_bytes: int,
    parameters: int,
) -> dict[str, object]:
    """The value of ``quantisation.json``; every number is whole or decimal text (QUANT-60).

    Args:
        params: What was asked for.
        chosen: What became of the layers.
        costs: What each rounded matrix cost.
        losses: What a calibrated method says of its layers.
        tensor_bytes: Bytes of all tensors of the quantised model.
        parameters: The model's number of weights.
    """
    return {
        "bits_per_weight": _decimal(8 * tensor_bytes / parameters),
        "embeddings": params.embeddings,
        "group": params.group,
        "kept": list(chosen.kept),
        "layers": [
            _row(chosen.targets[name], costs[name], losses.get(name)) for name in sorted(costs)
        ],
        "method": params.method,
        "parameters": parameters,
        "scheme": params.scheme.name,
        "tensor_bytes": tensor_bytes,
        "version": VERSION,
        "worst": worst(costs),
    }


def worst(costs: Mapping[str, Cost]) -> list[str]:
    """The layers with the largest relative errors, the worst first; of equals by name."""
    order = sorted(costs, key=lambda name: (-costs[name].error, name))
    return order[:WORST]


def _row(target: Target, cost: Cost, loss: Loss | None) -> dict[str, object]:
    row: dict[str, object] = {
        "activations": target.activations,
        "elements": prod(target.layer.shape),
        "format": target.form,
        "grid": asdict(target.grid),
        "layer": target.layer.name,
        "outliers": cost.outliers,
        "peak": _decimal(cost.peak),
        "relative_error": _decimal(cost.error),
        "shape": list(target.layer.shape),
    }
    if loss is not None:
        row["output_error"] = _decimal(_share(loss.chosen, loss.signal))
        row["output_error_of_nearest"] = _decimal(_share(loss.nearest, loss.signal))
    return row


def _share(error: float, signal: float) -> float:
    return sqrt(error / signal) if signal else 0.0


def _decimal(value: float) -> str:
    """`value` to six places after the point."""
    return f"{value:.{PLACES}f}"
