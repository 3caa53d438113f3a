"""Optimisers: how a stage changes what it trains."""

from __future__ import annotations

from kolm_build.core.catalogue.algorithm import OPTIMISER, Algorithm

ROWS: tuple[Algorithm, ...] = (
    Algorithm(
        id="adamw",
        axis=OPTIMISER,
        family="optimiser",
        title="Adam with decoupled weight decay",
        paper="arXiv:1711.05101, algorithm 2",
        minimises="two moments for each weight, beta 0.9 and 0.999",
        schema="any",
        backing="torch.optim.AdamW (fused)",
        oracle="torch.optim.AdamW",
        passes="none",
    ),
)
