"""Objectives over answers that are compared, judged or kept, and models that judge them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from tests.steps_ml.policies import alone, objective

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]


def test_a_tie_says_nothing_and_a_margin_is_dpo():
    """RL-60."""
    from kolm_build.steps.objectives._duels import preference_loss

    margin = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    preference_loss(margin, 0.3, is_tie=True).backward()
    assert margin.grad.item() == 0.0
    found = preference_loss(margin, 0.3, is_tie=False)
    assert found.item() == pytest.approx(math.log1p(math.exp(-0.21)))


def test_of_several_answers_the_best_and_the_worst_are_compared():
    """RL-60: the first of equals, in the order they came."""
    from kolm_build.steps.objectives._duels import two_of

    said = ["a", "b", "c", "d"]
    assert two_of(said, [1.0, 3.0, 0.0, 3.0]) == (("b", 3.0), ("c", 0.0))
    assert two_of(said, [0.0, 3.0, 0.0, 3.0]) == (("a", 0.0), ("b", 3.0))
    assert two_of(said, [2.0] * 4) == (("a", 2.0), ("b", 2.0))


def test_a_model_judges_by_the_points_it_expects():
    """RL-64."""
    from kolm_build.steps.objectives.self_rewarding import expected_score, judging

    chances = np.array([0.1, 0.2, 0.3, 0.1, 0.2, 0.1])
    found = expected_score(torch.tensor(np.log(chances) - 3.0))
    assert found == pytest.approx((chances * np.arange(6)).sum())
    (turn,) = judging([{"role": "user", "content": "Why?"}], "Because.")
    assert "Why?" in turn["content"]
    assert "Because." in turn["content"]


def test_a_hint_gives_the_answer_away_in_the_last_turn():
    """RL-66."""
    from kolm_build.steps.objectives.raft import best
    from kolm_build.steps.objectives.star import with_hint

    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    assert with_hint(turns, "4") == [
        turns[0],
        {"role": "user", "content": "2+2?\n\nHint: the answer is 4."},
    ]
    assert best((0.0, 2.0, 2.0)) == 1


def test_pairs_and_steps_are_scored_by_a_logistic_loss():
    """RL-20, RL-21: with a margin and a centre; equal to TRL's formula."""
    from kolm_build.steps.objectives.prm import step_loss as of_steps
    from kolm_build.steps.objectives.reward_bt import pair_loss

    one, other = torch.tensor(0.8).double(), torch.tensor(-0.1).double()
    assert pair_loss(one, other, 0.0, 0.0).item() == pytest.approx(math.log1p(math.exp(-0.9)))
    found = pair_loss(one, other, 0.5, 0.01).item()
    assert found == pytest.approx(math.log1p(math.exp(-0.4)) + 0.01 * 0.7**2)
    scores = torch.tensor([1.5, -0.5])
    wanted = (math.log1p(math.exp(-1.5)) + math.log1p(math.exp(-0.5))) / 2
    assert of_steps(scores, [True, False]).item() == pytest.approx(wanted)


def test_a_reward_models_loss_is_that_of_trl():
    """RL-20: value and gradient of two pairs with margins."""
    from trl import RewardTrainer

    from kolm_build.steps.objectives.reward_bt import pair_loss

    scores = [0.8, 1.2, -0.1, 1.5]  # two chosen answers, then the rejected ones
    margins = [0.5, 0.0]
    theirs, ours = (torch.tensor(scores, dtype=torch.float64).requires_grad_() for _ in range(2))
    trainer = RewardTrainer.__new__(RewardTrainer)
    vars(trainer).update(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=0.01),
        accelerator=alone(),
        _metrics=MagicMock(),
        _total_train_tokens=0,
    )
    loss = trainer.compute_loss(
        lambda **_inputs: SimpleNamespace(logits=theirs[:, None]),
        {"margin": torch.tensor(margins, dtype=torch.float64)},
    )
    loss.backward()
    rows = [pair_loss(ours[at], ours[2 + at], margins[at], 0.01) for at in (0, 1)]
    (sum(rows) / 2).backward()
    assert sum(rows).item() / 2 == pytest.approx(loss.item(), rel=1e-12)
    assert ours.grad.tolist() == pytest.approx(theirs.grad.tolist(), rel=1e-12)


# ----------------------------------------------------------------- whole objectives, by fakes

FIRST, SECOND = (0, 1, 2), (0, 3)
LOG_P = {FIRST: -2.0, SECOND: -1.2}
LOG_P_REFERENCE = {FIRST: -2.5, SECOND: -1.0}


@pytest.fixture
def speaking(monkeypatch):
    """Log-probabilities of two sequences, from a table, in every module that asks for them."""
    from kolm_build.steps.objectives import _duels, spin

    leaves = {ids: torch.tensor(value, requires_grad=True) for ids, value in LOG_P.items()}
    for module in (_duels, spin):
        monkeypatch.setattr(module, "log_probability", lambda _network, one: leaves[one.ids])
    return leaves


def said(ids):
    from kolm_build.steps._sequences import Continuation

    return Continuation(ids=ids, start=1)


def duel(first, second):
    from kolm_build.steps.objectives._duels import Duel, Side

    sides = [
        Side(sequence=said(ids), reference=torch.tensor(LOG_P_REFERENCE[ids]), reward=reward)
        for ids, reward in ((FIRST, first), (SECOND, second))
    ]
    return Duel(first=sides[0], second=sides[1], rows=4)


MARGIN = (LOG_P[FIRST] - LOG_P_REFERENCE[FIRST]) - (LOG_P[SECOND] - LOG_P_REFERENCE[SECOND])


@pytest.mark.parametrize(("rewards", "margin"), [((1.0, 0.0), MARGIN), ((0.0, 1.0), -MARGIN)])
def test_own_answers_are_compared_as_dpo_compares(speaking, rewards, margin):
    """RL-60, RL-61."""
    share = objective("online-dpo", beta="0.3").share(None, None, duel(*rewards))
    assert share.loss.item() == pytest.approx(math.log1p(math.exp(-0.3 * margin)) / 4)
    share.loss.backward()
    slope = -0.3 / (1 + math.exp(0.3 * margin)) / 4 * (1 if margin == MARGIN else -1)
    assert speaking[FIRST].grad.item() == pytest.approx(slope)
    assert speaking[SECOND].grad.item() == pytest.approx(-slope)
    assert [one.item() for one in share.figures] == pytest.approx(
        [0.5, margin, float(margin > 0), 0]
    )


@pytest.mark.parametrize(
    ("rewards", "dpo"), [((0.0, 1.0), math.log1p(math.exp(0.3 * MARGIN))), ((1.0, 1.0), 0.0)]
)
def test_xpo_pushes_away_from_what_the_reference_says(speaking, rewards, dpo):
    """RL-62: also where neither answer is better."""
    share = objective("xpo", beta="0.3", alpha="0.5").share(None, None, duel(*rewards))
    assert share.loss.item() == pytest.approx((dpo + 0.5 * LOG_P[SECOND]) / 4)


def test_nash_md_is_a_policy_gradient_of_winning(monkeypatch):
    """RL-63."""
    made = objective("nash-md", tau="0.2")
    policy = torch.tensor([-0.5, -1.5], requires_grad=True)
    monkeypatch.setattr(made, "log_probabilities", lambda _network, _one: policy)
    monkeypatch.setattr(made, "referred", lambda _network, _some: [torch.tensor([-1.0, -1.25])])
    match = made._match(None, said(FIRST), 2.0, 1.0, rows=3)
    weight = 1 / (1 + math.exp(-1.0)) - 0.5 - 0.2 * (-2.0 + 2.25)
    assert match.weight == pytest.approx(weight)
    share = made.share(None, None, match)
    share.loss.backward()
    assert share.loss.item() == pytest.approx(2.0 * weight / 3)
    assert policy.grad.tolist() == pytest.approx([-weight / 3] * 2)


def test_spin_prefers_the_rows_answer_to_the_opponents(speaking):
    """RL-65."""
    from kolm_build.steps.objectives.spin import Round

    played = Round(
        said=said(SECOND),
        real_reference=torch.tensor(LOG_P_REFERENCE[FIRST]),
        said_reference=torch.tensor(LOG_P_REFERENCE[SECOND]),
        rows=4,
    )
    share = objective("spin", beta="0.3").share(None, said(FIRST), played)
    assert share.loss.item() == pytest.approx(math.log1p(math.exp(-0.3 * MARGIN)) / 4)


class Script:
    """A sampler that says what is written: for each call the texts of each prompt."""

    def __init__(self, *calls):
        self.calls, self.asked = list(calls), []

    def draw(self, _network, prompts, _seeds, first=0):
        from kolm_build.steps._rollouts import Completion
        from kolm_build.steps._sequences import Continuation

        self.asked.append((list(prompts), first))
        return [
            [
                Completion(
                    sequence=Continuation(ids=(*prompt, 100 + at), start=len(prompt)),
                    text=text,
                    ended=True,
                )
                for at, text in enumerate(texts)
            ]
            for prompt, texts in zip(prompts, self.calls.pop(0), strict=True)
        ]


def scripted(name, *calls, **params):
    from contextlib import nullcontext

    made = objective(name, **params)
    made.sampler = Script(*calls)
    made.given = SimpleNamespace(
        change=SimpleNamespace(reference=lambda _network: nullcontext()),
        model=SimpleNamespace(
            chat=SimpleNamespace(prompt_ids=lambda turns: [len(turns[-1]["content"])])
        ),
        tokens=SimpleNamespace(check=lambda _length, _where: None),
    )
    return made


def prompt(number, reference):
    row = SimpleNamespace(reference=reference, messages=[{"role": "user", "content": "2+2?"}])
    return SimpleNamespace(ids=(number,), row=row, where=f"row {number}")


def equal(example, text, _where):
    return float(text == example.row.reference)


def test_star_learns_what_is_right_and_hints_where_nothing_is():
    """RL-66: what was said to the hint is learned as said to the prompt without it."""
    rows = [prompt(1, "4"), prompt(2, "5"), prompt(3, "6")]
    made = scripted("star", [["3", "4"], ["4", "4"], ["1", "1"]], [["5", "5"], ["0", "0"]],
                    generations=2)  # fmt: skip
    chosen = made.choose(None, rows, [1, 2, 3], equal)
    assert [one.sequence and one.sequence.ids for one in chosen] == [(1, 101), (2, 100), None]
    assert [one.rewards for one in chosen] == [(0.0, 1.0), (0.0, 0.0), (0.0, 0.0)]
    hint = len("2+2?\n\nHint: the answer is 5.")
    assert made.sampler.asked[1] == ([(hint,), (hint,)], 2)
    made = scripted("star", [["3"], ["5"], ["1"]], [], rationalise="no")
    chosen = made.choose(None, rows, [1, 2, 3], equal)
    assert [one.sequence and one.sequence.ids for one in chosen] == [None, (2, 100), None]


def test_raft_learns_the_best_of_each_prompt(monkeypatch):
    """RL-67: the mean over the tokens that are learned."""
    from kolm_build.steps.objectives import _kept

    rows = [prompt(1, "4"), prompt(2, "5")]
    made = scripted("raft", [["3", "4", "4"], ["1", "2", "3"]])
    chosen = made.choose(None, rows, [1, 2], equal)
    assert [one.sequence.ids for one in chosen] == [(1, 101), (2, 100)]
    monkeypatch.setattr(
        _kept, "token_log_probabilities", lambda _network, _one: torch.tensor([-0.5, -1.5])
    )
    share = made.share(None, rows[0], _kept.Kept(choice=chosen[0], tokens=8))
    assert share.loss.item() == pytest.approx(0.25)
    assert [one.item() for one in share.figures] == pytest.approx([2 / 3, 1.0])
    nothing = _kept.Choice(sequence=None, rewards=(0.0,))
    made.share(None, rows[0], _kept.Kept(choice=nothing, tokens=1)).loss.backward()


def test_dapo_draws_groups_of_equal_rewards_anew():
    """RL-42: as often as asked, with other draws."""
    rows = [prompt(1, "4"), prompt(2, "5")]
    made = scripted("dapo", [["3", "4"], ["1", "2"]], [["6", "7"]], [["5", "7"]],
                    generations=2, resamples=3)  # fmt: skip
    made.sampler.calls.append([])
    found = made.collect(None, rows, [1, 2], equal)
    assert [one.rewards for one in found] == [(0.0, 1.0), (1.0, 0.0)]
    assert [first for _, first in made.sampler.asked] == [0, 2, 4, 6]


def test_log_probabilities_are_those_at_the_temperature():
    """RL-38."""
    from kolm_build.steps._rollouts import tempered_log_probabilities

    logits = torch.tensor([[[1.0, 2.0, 0.5], [0.1, -1.0, 2.0]]])

    def network(**_given):
        return SimpleNamespace(logits=logits)

    found = tempered_log_probabilities(network, said((0, 1, 2)), 0.5)
    scaled = np.exp(logits[0].double().numpy() / 0.5)
    wanted = np.log(scaled / scaled.sum(1, keepdims=True))
    assert found.tolist() == pytest.approx([wanted[0, 1], wanted[1, 2]], rel=1e-5)
