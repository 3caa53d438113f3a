"""Whole optimiser steps over answers, the rows' and the model's own, against their papers.

Rows, and how the two are compared: `tests.steps_ml.whole_steps`.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.steps_ml.tables import (
    EMBED,
    HEAD,
    WIDTH,
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
    ratios,
    s,
    shares_of,
    sides,
    sums,
)

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]


def smoothed(e):
    def losses(now, _held, ids):
        return -(1 - e) * now[range(len(ids)), ids] - e * now.mean(axis=1)

    return losses


def nll(now, _held, ids):
    return -now[range(len(ids)), ids]


def weighed_by_itself(now, held, ids):
    return -np.exp(held[range(len(ids)), ids]) * now[range(len(ids)), ids]


ANSWERS = {
    "curriculum": ({}, nll),
    "dft": ({}, weighed_by_itself),
    "label-smoothing": ({"smoothing": 0.3}, smoothed(0.3)),
    "seq-kd": ({}, nll),
    "sft": ({}, nll),
    "texts": ({}, nll),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_step_over_answers_is_the_mean_over_their_tokens(name):
    """SFT-3, ADPT-80, ADPT-82, ADPT-84, ADPT-85."""
    params, losses = ANSWERS[name]
    network = Tables(1)
    start = numbers_of(network)

    def by_hand(numbers):
        total = 0.0
        for one in ROWS:
            now, held = (logs(logits_at(some, one)) for some in (numbers, start))
            total += losses(now, held, list(one.ids[one.start :])).sum()
        return total / TOKENS

    made = objective(name, **params)
    check(network, shares_of(made, network, ROWS), by_hand)


def test_a_weighted_step_is_the_weighted_mean():
    """ADPT-83."""
    from kolm_build.steps.objectives.weighted_sft import Weighted

    network, weights = Tables(1), (0.5, 3.0, 1.25)
    rows = [
        Weighted(sequence=one, weight=weight) for one, weight in zip(ROWS, weights, strict=True)
    ]

    def by_hand(numbers):
        pairs = list(zip(ROWS, weights, strict=True))
        total = sum(weight * -token_logs(numbers, one).sum() for one, weight in pairs)
        return total / sum(weight * one.tokens for one, weight in pairs)

    check(network, shares_of(objective("weighted-sft"), network, rows), by_hand)


def test_a_noisy_step_is_that_of_moved_embeddings():
    """ADPT-81: algorithm 1, with the row's own draws; the noise is held."""
    network, made = Tables(1), objective("neftune", neftune_alpha=3)
    noises = []
    for seed, one in enumerate(ROWS):
        torch.manual_seed(seed)
        noise = 2 * torch.rand(len(one.ids), WIDTH).double().numpy() - 1
        noises.append(noise * 3 / math.sqrt(len(one.ids) * WIDTH))

    def shares():
        for seed, one in enumerate(ROWS):
            torch.manual_seed(seed)
            yield made.share(network, one, TOKENS)

    def by_hand(numbers):
        total = 0.0
        for one, noise in zip(ROWS, noises, strict=True):
            moved = (numbers[EMBED][list(one.ids)] + noise)[one.start - 1 : -1]
            total -= logs(moved @ numbers[HEAD].T)[range(one.tokens), one.ids[one.start :]].sum()
        return total / TOKENS

    check(network, shares, by_hand)


# ---------------------------------------------------------------------------- own answers


DUELS = {
    "online-dpo": ({"beta": 0.3}, 0.0),
    "self-rewarding": ({"beta": 0.3}, 0.0),
    "xpo": ({"beta": 0.3, "alpha": 0.5}, 0.5),
}


@pytest.mark.parametrize("name", DUELS)
def test_a_step_over_two_own_answers_is_that_of_its_paper(name):
    """RL-60, RL-62: the first is better, the second, neither."""
    params, alpha = DUELS[name]
    network, before = Tables(1), numbers_of(Tables(2))
    made, duels = objective(name, **params), sides(before)

    def by_hand(numbers):
        won, lost = (ratios(numbers, before, rows) for rows in (ROWS, OTHERS))
        bonus = alpha * sum(token_logs(numbers, one).sum() for one in OTHERS)
        return (-log_s(0.3 * (won[0] - lost[0])) - log_s(0.3 * (lost[1] - won[1])) + bonus) / 3

    check(network, lambda: (made.share(network, None, one) for one in duels), by_hand)


def test_a_step_of_nash_md_is_its_policy_gradient():
    """RL-63: the weight P - 1/2 - tau log (p / p_ref) is held."""
    network, reference = Tables(1), Tables(2)
    made = objective("nash-md", tau=0.2)
    made.given = SimpleNamespace(change=Reference(reference))
    held, before, worth = numbers_of(network), numbers_of(reference), [(2.0, 1.0), (0.0, 0.5)]
    with torch.no_grad():
        matches = [
            made._match(network, one, *rewards, rows=2)
            for one, rewards in zip(ROWS[:2], worth, strict=True)
        ]
    weights = [
        s(mine - theirs) - 0.5 - 0.2 * apart
        for (mine, theirs), apart in zip(worth, ratios(held, before, ROWS[:2]), strict=True)
    ]

    def by_hand(numbers):
        return -np.mean(np.array(weights) * sums(numbers, ROWS[:2]))

    check(network, lambda: (made.share(network, None, one) for one in matches), by_hand)


def test_a_step_of_self_play_prefers_the_rows_answers():
    """RL-65: equation 4.7."""
    from kolm_build.steps.objectives.spin import Round

    network, before = Tables(1), numbers_of(Tables(2))
    made = objective("spin", beta=0.3)
    rounds = [
        Round(
            said=other,
            real_reference=torch.tensor(token_logs(before, one).sum()),
            said_reference=torch.tensor(token_logs(before, other).sum()),
            rows=3,
        )
        for one, other in zip(ROWS, OTHERS, strict=True)
    ]
    check(
        network,
        lambda: (made.share(network, *one) for one in zip(ROWS, rounds, strict=True)),
        lambda numbers: np.mean(dpo_rows(numbers, before)),
    )


@pytest.mark.parametrize("name", ["raft", "star"])
def test_a_step_over_kept_answers_is_their_likelihood(name):
    """RL-66, RL-67: a row without one adds nothing."""
    from kolm_build.steps.objectives._kept import Choice, Kept

    network, made = Tables(1), objective(name)
    learned = [ROWS[0], None, ROWS[2]]
    tokens = ROWS[0].tokens + ROWS[2].tokens
    kept = [Kept(choice=Choice(sequence=one, rewards=(1.0,)), tokens=tokens) for one in learned]
    check(
        network,
        lambda: (made.share(network, None, one) for one in kept),
        lambda n: -(token_logs(n, ROWS[0]).sum() + token_logs(n, ROWS[2]).sum()) / tokens,
    )


REWARDS = (1.0, 0.25, -0.5)


def rollouts(made, network):
    """What was said, by `network`, judged by `REWARDS`."""
    from kolm_build.steps._rollouts import Completion
    from kolm_build.steps.objectives._policy import Rollout

    found = []
    for one, reward in zip(ROWS, REWARDS, strict=True):
        said = Completion(sequence=one, text="", ended=True)
        bare = Rollout(
            example=SimpleNamespace(where="row 1"), completions=(said,), rewards=(reward,)
        )
        found.append(made.known(network, bare))
    return found


def test_a_step_of_ppo_moves_the_policy_and_the_values():
    """RL-48: equations 7, 9, 11 and 12; advantages and returns are held."""
    params = {"beta": 0.2, "gamma": 0.9, "gae_lambda": 0.8, "value_coefficient": 0.3}
    made = objective("ppo", **params)
    old, network, reference = Tables(4), Tables(4), Tables(2)
    with torch.no_grad():  # a little after the policy that spoke
        for one in network.parameters():
            one.add_(torch.randn(one.shape, generator=torch.Generator().manual_seed(8)) / 8)
    for at, one in enumerate((old, network)):
        made.attach(one)
        draw = torch.Generator().manual_seed(5)
        torch.nn.init.normal_(one.value_head.weight, generator=draw)
        one.value_head.weight.data.add_(at * 0.1)
    made.given = SimpleNamespace(change=Reference(reference))
    with torch.no_grad():
        groups = made.groups(rollouts(made, old))
    before, then = numbers_of(reference), numbers_of(old)

    def values(numbers, one):
        return numbers[EMBED][list(one.ids[one.start - 1 : -1])] @ numbers["value_head.weight"]

    raw = []
    for one, reward in zip(ROWS, REWARDS, strict=True):
        deltas = -0.2 * (token_logs(then, one) - token_logs(before, one))
        deltas[-1] += reward
        looked = np.array([*values(then, one), 0.0])
        deltas += 0.9 * looked[1:] - looked[:-1]
        count = one.tokens
        raw.append(
            np.array(
                [sum(0.72 ** (u - t) * deltas[u] for u in range(t, count)) for t in range(count)]
            )
        )
    every = np.concatenate(raw)

    def by_hand(numbers):
        loss = 0.0
        for one, estimated in zip(ROWS, raw, strict=True):
            advantage = (estimated - every.mean()) / (every.std() + 1e-8)
            ratio = np.exp(token_logs(numbers, one) - token_logs(then, one))
            loss -= np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage).sum()
            was, now = values(then, one), values(numbers, one)
            wanted = estimated + was
            near = was + np.clip(now - was, -0.2, 0.2)
            loss += 0.3 * 0.5 * np.maximum((now - wanted) ** 2, (near - wanted) ** 2).sum()
        return loss / TOKENS

    check(network, lambda: (made.share(network, None, one) for one in groups), by_hand)
