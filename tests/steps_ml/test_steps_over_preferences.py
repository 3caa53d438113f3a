"""Whole optimiser steps over pairs, judged answers and rewards, against their papers.

Rows, and how the two are compared: `tests.steps_ml.whole_steps`.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kolm_build.steps._sequences import Continuation
from tests.steps_ml.tables import (
    EMBED,
    Reference,
    Tables,
    check,
    logits_at,
    logs,
    numbers_of,
    objective,
    token_logs,
)
from tests.steps_ml.whole_steps import (
    OTHERS,
    ROWS,
    TOKENS,
    dpo_rows,
    log_s,
    pairs,
    ratios,
    s,
    shares_of,
    sums,
)

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]


def chosen_nll(numbers):
    return -sum(token_logs(numbers, one).sum() for one in ROWS) / TOKENS


def odds(numbers, rows):
    means = np.array([token_logs(numbers, one).mean() for one in rows])
    return means - np.log(1 - np.exp(means))


def liking(numbers, one):
    """WPO's weight of one answer, equation 2, aligned."""
    every = logs(logits_at(numbers, one))
    return math.exp(np.mean(token_logs(numbers, one) - np.log((np.exp(every) ** 2).sum(axis=1))))


def wpo(numbers, before, held):
    weights = [
        liking(held, one) * liking(held, other) for one, other in zip(ROWS, OTHERS, strict=True)
    ]
    return np.mean(np.array(dpo_rows(numbers, before)) * weights)


def aot(numbers, before, _held):
    now = np.sort(sums(numbers, ROWS) - sums(numbers, OTHERS))
    then = np.sort(sums(before, ROWS) - sums(before, OTHERS))
    return np.mean([-0.9 * log_s(0.3 * d) - 0.1 * log_s(-0.3 * d) for d in now - then])


def aot_unpaired(numbers, before, _held):
    won, lost = (np.sort(ratios(numbers, before, rows)) for rows in (ROWS, OTHERS))
    return np.mean([-0.9 * log_s(0.3 * d) - 0.1 * log_s(-0.3 * d) for d in won - lost])


PAIRS = {
    "aot": ({"beta": 0.3, "label_smoothing": 0.1}, aot),
    "aot-unpaired": ({"beta": 0.3, "label_smoothing": 0.1}, aot_unpaired),
    "cpo": (
        {"beta": 0.3, "nll_weight": 0.5},
        lambda n, _b, _h: (
            np.mean([-log_s(0.3 * d) for d in sums(n, ROWS) - sums(n, OTHERS)])
            + 0.5 * chosen_nll(n)
        ),
    ),
    "dpo": ({"beta": 0.3}, lambda n, b, _h: np.mean(dpo_rows(n, b))),
    "orpo": (
        {"odds_weight": 0.2},
        lambda n, _b, _h: (
            chosen_nll(n) - 0.2 * np.mean([log_s(d) for d in odds(n, ROWS) - odds(n, OTHERS)])
        ),
    ),
    "rpo": (
        {"beta": 0.3, "nll_weight": 0.5},
        lambda n, b, _h: np.mean(dpo_rows(n, b)) + 0.5 * chosen_nll(n),
    ),
    "wpo": ({"beta": 0.3}, wpo),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_step_over_pairs_is_that_of_its_paper(name):
    """PREF-1, PREF-4."""
    params, formula = PAIRS[name]
    network, reference = Tables(1), Tables(2)
    made, held, before = objective(name, **params), numbers_of(network), numbers_of(reference)
    made.start(reference, pairs())
    check(network, shares_of(made, network, pairs()), lambda n: formula(n, before, held))


GOOD, WEIGHTS = (True, False, True), (2.0, 0.5, 1.0)


def mixed(rows):
    """Each prompt with the next row's answer."""
    return [
        Continuation(ids=(*one.ids[: one.start], *next_.ids[next_.start :]), start=one.start)
        for one, next_ in zip(rows, [*rows[1:], rows[0]], strict=True)
    ]


def kto(found, held, _before_sum):
    z = max(0.0, np.mean(held))
    return [
        2 * (1 - s(0.3 * (r - z))) if good else 3 * (1 - s(0.3 * (z - r)))
        for r, good in zip(found, GOOD, strict=True)
    ]


def bco(found, held, ratios_held):
    delta = np.mean([0.3 * one for one in ratios_held])
    return [
        -log_s(0.3 * r - delta) if good else -log_s(delta - 0.3 * r)
        for r, good in zip(found, GOOD, strict=True)
    ]


def apo(found, _held, _ratios):
    return [1 - s(0.3 * r) if good else s(0.3 * r) for r, good in zip(found, GOOD, strict=True)]


SINGLE = {
    "apo-zero-unpaired": ({"beta": 0.3}, apo),
    "bco": ({"beta": 0.3}, bco),
    "kto": ({"beta": 0.3, "good_weight": 2, "bad_weight": 3}, kto),
}


@pytest.mark.parametrize("seed", [1, 2, 6])
@pytest.mark.parametrize("name", SINGLE)
def test_a_step_over_single_answers_is_that_of_its_paper(name, seed):
    """PREF-1: what ratios are measured from has no gradient, by intent."""
    from kolm_build.steps.objectives._feedback import FeedbackExample

    params, formula = SINGLE[name]
    network, reference = Tables(seed), Tables(9)
    held, before = numbers_of(network), numbers_of(reference)
    examples = [
        FeedbackExample(number=at, sequence=one, good=good, weight=weight)
        for at, (one, good, weight) in enumerate(zip(ROWS, GOOD, WEIGHTS, strict=True))
    ]
    made = objective(name, **params)
    made._change = Reference(reference)
    made.start(reference, examples)

    def by_hand(numbers):
        found = ratios(numbers, before, ROWS)
        losses = formula(found, ratios(held, before, mixed(ROWS)), ratios(held, before, ROWS))
        return np.mean(np.array(losses) * WEIGHTS)

    check(network, shares_of(made, network, examples), by_hand)


# --------------------------------------------------------------------------- reward models


@pytest.mark.parametrize("centre", [0, 0.01])
def test_a_step_over_compared_rewards_is_that_of_its_paper(centre):
    """RL-20: equation 1, with a margin and a centre."""
    network, made = Tables(1), objective("reward-bt", centre=centre)
    made.attach(network)
    torch.nn.init.normal_(network.reward_head.weight, generator=torch.Generator().manual_seed(3))

    def reward(numbers, one):
        return numbers[EMBED][one.ids[-1]] @ numbers["reward_head.weight"]

    rows = pairs()
    ends = [(2, 3), (5, 4), (1, 5)]  # so that the last tokens differ
    rows = [
        SimpleNamespace(
            chosen=Continuation(ids=(*one.chosen.ids, end[0]), start=one.chosen.start),
            rejected=Continuation(ids=(*one.rejected.ids, end[1]), start=one.rejected.start),
            margin=0.5,
        )
        for one, end in zip(rows, ends, strict=True)
    ]

    def by_hand(numbers):
        scores = [(reward(numbers, one.chosen), reward(numbers, one.rejected)) for one in rows]
        return np.mean([-log_s(a - b - 0.5) + centre * (a + b) ** 2 for a, b in scores])

    check(network, shares_of(made, network, rows), by_hand)


def test_a_step_over_judged_steps_is_their_cross_entropy():
    """RL-21: the mean over a row's steps, then over rows."""
    from kolm_build.steps.objectives.prm import StepsExample

    network, made = Tables(1), objective("prm")
    made.attach(network)
    torch.nn.init.normal_(network.reward_head.weight, generator=torch.Generator().manual_seed(3))
    rows = [
        StepsExample(ids=(1, 4, 2, 5, 3), ends=(2, 4), labels=(True, False)),
        StepsExample(ids=(2, 3, 1), ends=(2,), labels=(True,)),
    ]

    def by_hand(numbers):
        means = []
        for one in rows:
            found = numbers[EMBED][[one.ids[end] for end in one.ends]]
            chances = [s(x) for x in found @ numbers["reward_head.weight"]]
            losses = [
                -math.log(p if label else 1 - p)
                for p, label in zip(chances, one.labels, strict=True)
            ]
            means.append(np.mean(losses))
        return np.mean(means)

    check(network, shares_of(made, network, rows), by_hand)
