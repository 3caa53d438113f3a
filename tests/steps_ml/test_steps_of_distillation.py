"""Whole optimiser steps beside a teacher, against their papers.

Rows, and how the two are compared: `tests.steps_ml.whole_steps`.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from kolm_build.steps._sequences import Continuation
from tests.steps_ml.tables import (
    EMBED,
    KINDS,
    Tables,
    check,
    logits_at,
    logs,
    numbers_of,
    objective,
    token_logs,
)
from tests.steps_ml.test_distillation import FORMULAS as DISTANCES
from tests.steps_ml.whole_steps import ROWS, TOKENS, shares_of

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("name", DISTANCES)
def test_a_taught_step_is_the_mean_over_tokens_of_distance_and_likelihood(name):
    """DIST-1: a quarter of it is the answers' own likelihood."""
    params, formula = DISTANCES[name]
    heat = params.get("temperature", 1)
    network, teacher = Tables(1), Tables(2)
    made, taught = objective(name, hard_weight=0.25, **params), numbers_of(teacher)
    made.teacher = SimpleNamespace(network=teacher)

    def by_hand(numbers):
        total = 0.0
        for one in ROWS:
            t, q = (np.exp(logs(logits_at(some, one) / heat)) for some in (taught, numbers))
            total += 0.75 * heat**2 * formula(t, q).sum()
            total -= 0.25 * token_logs(numbers, one).sum()
        return total / TOKENS

    check(network, shares_of(made, network, ROWS), by_hand)


def test_a_step_over_hidden_states_is_their_mean_square_difference():
    """DIST-1: equation 3 of FitNets without a regressor, at the answers' tokens."""
    network, teacher = Tables(1), Tables(2)
    made, taught = objective("kd-hidden", hard_weight=0.25), numbers_of(teacher)
    made.teacher = SimpleNamespace(network=teacher)

    def by_hand(numbers):
        total = 0.0
        for one in ROWS:
            at = list(one.ids[one.start - 1 : -1])
            total += 0.75 * ((numbers[EMBED][at] - taught[EMBED][at]) ** 2).mean(axis=1).sum()
            total -= 0.25 * token_logs(numbers, one).sum()
        return total / TOKENS

    check(network, shares_of(made, network, ROWS), by_hand)


def relation(numbers, one, kind):
    """Softmax (A A' / sqrt d) of two heads over all places of a row."""
    weight = numbers[f"model.layers.0.self_attn.{kind}.weight"]
    values = numbers[EMBED][list(one.ids)] @ weight.T
    heads = [values[:, :2], values[:, 2:]]
    return np.stack([np.exp(logs(head @ head.T / math.sqrt(2))) for head in heads])


def test_a_step_over_relations_is_that_of_queries_keys_and_values():
    """DIST-5: equations 4 to 6 of MiniLMv2."""
    network, teacher = Tables(1), Tables(2)
    made, taught = objective("minilm", hard_weight=0.25, relation_heads=2), numbers_of(teacher)
    made.teacher = SimpleNamespace(network=teacher)

    def by_hand(numbers):
        total = 0.0
        for one in ROWS:
            for kind in KINDS:
                t, q = (relation(some, one, kind) for some in (taught, numbers))
                total += 0.75 * one.tokens * (t * np.log(t / q)).sum(axis=-1).mean()
            total -= 0.25 * token_logs(numbers, one).sum()
        return total / TOKENS

    check(network, shares_of(made, network, ROWS), by_hand)


def test_a_step_across_vocabularies_is_likelihood_and_sorted_distance():
    """DIST-4: equations 4 and 6 of ULD; the teacher has other words and other tokens."""
    from kolm_build.steps.objectives.uld import Twice

    network, teacher = Tables(1), Tables(2, words=8)
    made, taught = objective("uld", distance_weight=1.5), numbers_of(teacher)
    made.teacher = SimpleNamespace(network=teacher)
    theirs = (
        Continuation(ids=(7, 6, 1, 2), start=2),
        Continuation(ids=(7, 3, 5), start=1),
        Continuation(ids=(6, 3, 4, 0, 2, 2), start=3),
    )
    rows = [Twice(student=one, teacher=other) for one, other in zip(ROWS, theirs, strict=True)]

    def by_hand(numbers):
        total = 0.0
        for one, other in zip(ROWS, theirs, strict=True):
            p = -np.sort(-np.exp(logs(logits_at(numbers, one))), axis=1)
            q = -np.sort(-np.exp(logs(logits_at(taught, other))), axis=1)
            both = min(len(p), len(q))
            padded = np.pad(p, ((0, 0), (0, 2)))
            total += 1.5 * np.abs(padded[:both] - q[:both]).sum()
            total -= token_logs(numbers, one).sum()
        return total / TOKENS

    check(network, shares_of(made, network, rows), by_hand)


def test_a_step_on_what_the_student_said_is_the_divergence_at_those_tokens():
    """DIST-1: algorithm 1 of GKD; what was drawn is held."""
    from kolm_build.steps._rollouts import Completion
    from kolm_build.steps.objectives.gkd import Said

    network, teacher = Tables(1), Tables(2)
    made, taught = objective("gkd", beta=0.3), numbers_of(teacher)
    made.teacher = SimpleNamespace(network=teacher)
    said = [
        Said(completion=Completion(sequence=one, text="", ended=True), tokens=TOKENS)
        for one in ROWS
    ]

    def by_hand(numbers):
        total = 0.0
        for one in ROWS:
            t, q = (np.exp(logs(logits_at(some, one))) for some in (taught, numbers))
            m = 0.3 * t + 0.7 * q
            total += (0.3 * t * np.log(t / m) + 0.7 * q * np.log(q / m)).sum()
        return total / TOKENS

    check(network, lambda: (made.share(network, None, one) for one in said), by_hand)
