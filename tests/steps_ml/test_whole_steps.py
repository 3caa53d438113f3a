"""Whole optimiser steps: loss by NumPy from the papers' equations, gradient by differences.

Rows, masks, references and means are in it, so what is compared is what the trainer minimises.
What a paper holds while it differentiates (weights, reference points, what was drawn) is held.
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
    HEAD,
    KINDS,
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
from tests.steps_ml.test_distillation import FORMULAS as DISTANCES

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

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


# ------------------------------------------------------------------------------- answers


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


# ---------------------------------------------------------------------------- preferences


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


def chosen_nll(numbers):
    return -sum(token_logs(numbers, one).sum() for one in ROWS) / TOKENS


def sums(numbers, rows):
    return np.array([token_logs(numbers, one).sum() for one in rows])


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


# ---------------------------------------------------------------------------- own answers


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


# --------------------------------------------------------------------------- distillation


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
