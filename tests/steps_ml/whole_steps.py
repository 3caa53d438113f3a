"""Rows of a step, and what several papers make of them, by NumPy.

The tests of whole optimiser steps use it: loss by NumPy from the papers' equations, gradient by
differences. Rows, masks, references and means are in it, so what is compared is what the trainer
minimises. What a paper holds while it differentiates (weights, reference points, what was drawn)
is held.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from kolm_build.steps._sequences import Continuation
from tests.steps_ml.tables import token_logs

ROWS = (
    Continuation(ids=(1, 4, 2, 0), start=2),
    Continuation(ids=(2, 3, 5, 1, 0), start=1),
    Continuation(ids=(3, 3, 4, 0), start=3),
)
OTHERS = (
    Continuation(ids=(1, 4, 5, 5, 0), start=2),
    Continuation(ids=(2, 1, 0), start=1),
    Continuation(ids=(3, 3, 4, 2, 1, 0), start=3),
)
TOKENS = sum(one.tokens for one in ROWS)


def log_s(x):
    return -math.log1p(math.exp(-x))


def s(x):
    return 1 / (1 + math.exp(-x))


def moment(rows=3):
    from kolm_build.steps._objective import Moment

    return Moment(number=0, seeds=tuple(range(rows)), repeat=0)


def shares_of(made, network, examples):
    """The rows' shares of a step, prepared as the trainer does."""
    with torch.no_grad():
        contexts = made.prepare(network, examples, moment(len(examples)))
    return lambda: (made.share(network, *one) for one in zip(examples, contexts, strict=True))


def pairs():
    from kolm_build.steps.objectives._pairs import PairExample

    return [
        PairExample(number=at, chosen=one, rejected=other, margin=2.0)
        for at, (one, other) in enumerate(zip(ROWS, OTHERS, strict=True))
    ]


def ratios(numbers, before, rows):
    return [(token_logs(numbers, one) - token_logs(before, one)).sum() for one in rows]


def dpo_rows(numbers, before):
    won, lost = (ratios(numbers, before, rows) for rows in (ROWS, OTHERS))
    return [-log_s(0.3 * (one - other)) for one, other in zip(won, lost, strict=True)]


def sums(numbers, rows):
    return np.array([token_logs(numbers, one).sum() for one in rows])


def sides(before):
    """The two answers of every row with what the reference says of them."""
    from kolm_build.steps.objectives._duels import Duel, Side

    made = []
    for rewards, *both in zip([(1.0, 0.0), (0.25, 0.75), (0.5, 0.5)], ROWS, OTHERS, strict=True):
        one, other = (
            Side(sequence=one, reference=torch.tensor(token_logs(before, one).sum()), reward=worth)
            for one, worth in zip(both, rewards, strict=True)
        )
        made.append(Duel(first=one, second=other, rows=3))
    return made
