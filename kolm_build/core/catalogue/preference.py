"""Preference optimisation: of two answers the better one, of one answer good or bad."""

from __future__ import annotations

from kolm_build.core.catalogue.algorithm import Algorithm, Decimal

BETA = Decimal(name="beta", default="0.1", most="100", help="how close the policy is held")

ROWS: tuple[Algorithm, ...] = (
    Algorithm(
        id="dpo",
        family="preference",
        title="Direct preference optimisation",
        paper="arXiv:2305.18290, equation 7",
        minimises="-log sigmoid(beta (log ratio of chosen - log ratio of rejected))",
        schema="pairs",
        parameters=(BETA,),
        step="dpo",
        backing="kolm_build.steps.objectives.dpo",
        oracle="trl.DPOTrainer, loss_type sigmoid",
        passes="4 forward (2 of them once, for the reference), 2 backward",
    ),
)
