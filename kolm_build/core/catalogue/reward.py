"""Reward models: what a completion is worth, learned from judgements.

In the formulas r is the number that the head gives the last hidden state at the end of an answer,
or of a step, and s the sigmoid.
"""

from __future__ import annotations

from kolm_build.core.catalogue.algorithm import Algorithm, Decimal

ROWS: tuple[Algorithm, ...] = (
    Algorithm(
        id="reward-bt",
        family="reward",
        title="Reward model of preferences",
        paper="arXiv:2203.02155, equation 1",
        minimises="-log s(r(w) - r(l) - margin) + centre (r(w) + r(l))^2",
        schema="pairs",
        parameters=(
            Decimal(
                name="centre",
                default="0",
                most="100",
                help="what holds rewards near 0 (2312.09244)",
            ),
        ),
        step="reward-bt",
        backing="kolm_build.steps.objectives.reward_bt",
        oracle="trl.RewardTrainer",
        passes="2 forward, 2 backward",
    ),
    Algorithm(
        id="prm",
        family="reward",
        title="Process reward model",
        paper="arXiv:2305.20050, section 2.6",
        minimises="-mean over steps of log s(r) for a right step, log s(-r) for a wrong one",
        schema="steps",
        step="prm",
        backing="kolm_build.steps.objectives.prm",
        oracle="NumPy",
        passes="1 forward, 1 backward",
    ),
)
