"""Objectives over a policy's own completions: each is its paper's, and what TRL computes."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kolm_build.core.fields import Fields
from kolm_build.errors import StepFailedError
from kolm_build.steps.table import REINFORCEMENT

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

# Two prompts with two completions each: log p of every token, now, when said, and before training.
POLICY = ([-0.7, -1.2, -0.1], [-2.0, -0.4], [-1.1, -0.3], [-0.6, -1.9, -0.2, -0.8])
OLD = ([-0.9, -1.0, -0.4], [-1.5, -0.6], [-0.8, -0.5], [-0.9, -1.1, -0.5, -0.7])
REFERENCE = ([-1.0, -0.8, -0.7], [-1.2, -0.7], [-0.7, -0.9], [-1.3, -1.0, -0.4, -0.1])
VALUES = ([0.1, 0.3, 0.2], [-0.1, 0.4], [0.5, 0.2], [0.0, -0.2, 0.3, 0.1])
REWARDS = ([1.0, 0.25], [0.5, 0.0])
MOST = 6  # max_new_tokens


def objective(name, **params):
    fields = Fields(params)
    made = importlib.import_module(f"kolm_build.steps.objectives.{name.replace('-', '_')}").TAKE(
        fields
    )
    fields.done()
    return made


def double(rows):
    return tuple(torch.tensor(one, dtype=torch.float64) for one in rows)


def rollouts(rewards=REWARDS, *, old=True, reference=True, values=False):
    """What was drawn for the two prompts."""
    from kolm_build.steps._rollouts import Completion
    from kolm_build.steps._sequences import Continuation
    from kolm_build.steps.objectives._policy import Rollout

    def rollout(row):
        here = slice(2 * row, 2 * row + 2)
        return Rollout(
            example=SimpleNamespace(where=f"row {row + 1}"),
            completions=tuple(
                Completion(
                    sequence=Continuation(ids=(0,) * (1 + len(one)), start=1), text="", ended=True
                )
                for one in POLICY[here]
            ),
            rewards=tuple(rewards[row]),
            old=double(OLD[here]) if old else (),
            reference=double(REFERENCE[here]) if reference else (),
            values=double(VALUES[here]) if values else (),
        )

    return [rollout(0), rollout(1)]


def step_loss(made, drawn, policy=POLICY):
    """The loss of a step of both prompts, and its gradient by each log p."""
    leaves = [torch.tensor(one, dtype=torch.float64, requires_grad=True) for one in policy]
    parts = [part for group in made.groups(drawn) for part in group.parts]
    loss = sum(
        made.ran(
            *pair,
        ).loss
        for pair in zip(leaves, parts, strict=True)
    )
    loss.backward()
    return loss.item(), [one.grad.numpy() for one in leaves]


def standard(rewards):
    return [(np.array(one) - np.mean(one)) / (np.std(one, ddof=1) + 1e-4) for one in rewards]


def flat(advantages):
    return [one for row in advantages for one in row]


def arrays(rows):
    return [np.array(one) for one in rows]


def clip_loss(q, a, low=0.2, high=0.2):
    return -np.minimum(q * a, np.clip(q, 1 - low, 1 + high) * a)


def k3(p, ref):
    return np.exp(ref - p) - (ref - p) - 1


def grpo_reference(scale=lambda n: 1 / (4 * n), advantages=None, beta=0.04, low=0.2, high=0.2):
    found = 0.0
    advantages = standard(REWARDS) if advantages is None else advantages
    for p, o, r, a in zip(
        arrays(POLICY), arrays(OLD), arrays(REFERENCE), flat(advantages), strict=True
    ):
        losses = clip_loss(np.exp(p - o), a, low, high) + beta * k3(p, r)
        found += losses.sum() * scale(len(p))
    return found


def gspo_reference():
    found = 0.0
    for p, o, a in zip(arrays(POLICY), arrays(OLD), flat(standard(REWARDS)), strict=True):
        found += clip_loss(np.exp((p - o).mean()), a, 0.1, 0.2) / 4
    return found


def cispo_reference():
    found = 0.0
    for p, o, a in zip(arrays(POLICY), arrays(OLD), flat(standard(REWARDS)), strict=True):
        found += (-np.minimum(np.exp(p - o), 1.3) * a * p).sum() / 11
    return found


def penalised(beta):
    """R - beta log (p / p_ref) of each completion, by the policy that said it."""
    sums = [(o - r).sum() for o, r in zip(arrays(OLD), arrays(REFERENCE), strict=True)]
    return [reward - beta * one for reward, one in zip(flat(REWARDS), sums, strict=True)]


def rloo_reference():
    worth = penalised(0.05)
    found = 0.0
    for at, (p, o) in enumerate(zip(arrays(POLICY), arrays(OLD), strict=True)):
        advantage = worth[at] - worth[at ^ 1]  # of two, the other is the mean of the others
        found += clip_loss(np.exp((p - o).sum()), advantage) / 4
    return found


def reinforce_reference(beta=0.01):
    raw = [
        reward - beta * np.cumsum((o - r)[::-1])[::-1]
        for reward, o, r in zip(flat(REWARDS), arrays(OLD), arrays(REFERENCE), strict=True)
    ]
    every = np.concatenate(raw)
    found = 0.0
    for p, o, a in zip(arrays(POLICY), arrays(OLD), raw, strict=True):
        advantage = (a - every.mean()) / (every.std() + 1e-8)
        found += clip_loss(np.exp(p - o), advantage).sum() / (4 * len(p))
    return found


def beta_density(x, a, b):
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return math.exp(scale + (a - 1) * math.log(x) + (b - 1) * math.log1p(-x))


def bnpo_reference():
    middles = np.array([np.mean(one) for one in REWARDS])
    size = middles.mean() * (1 - middles.mean()) / middles.var() - 1
    a, b = size * middles.mean(), size * (1 - middles.mean())
    advantages = [
        (np.array(one) - middle) / beta_density(middle, 1 + a / 3, 1 + b / 3)
        for one, middle in zip(REWARDS, middles, strict=True)
    ]
    return grpo_reference(advantages=advantages, beta=0)


CENTRED = [np.array(one) - np.mean(one) for one in REWARDS]
FORMULAS = {
    "grpo": ({}, grpo_reference),
    "dr-grpo": (
        {"max_new_tokens": MOST, "beta": "0.1"},
        lambda: grpo_reference(lambda _n: 1 / (4 * MOST), CENTRED, 0.1),
    ),
    "dapo": ({}, lambda: grpo_reference(lambda _n: 1 / 11, beta=0, high=0.28)),
    "gspo": ({"epsilon": "0.1", "epsilon_high": "0.2"}, gspo_reference),
    "cispo": ({"epsilon_high": "0.3"}, cispo_reference),
    "bnpo": ({}, bnpo_reference),
    "rloo": ({}, rloo_reference),
    "reinforce-pp": ({}, reinforce_reference),
}


def drawn_for(name, params):
    """Rollouts that hold what the objective asked for."""
    beta = objective(name, **params).params.beta
    return rollouts(reference=beta > 0)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_loss_is_that_of_its_paper(name):
    """RL-33, RL-40, RL-41, RL-42, RL-43, RL-44, RL-45, RL-46: NumPy, by the equations."""
    params, wanted = FORMULAS[name]
    loss, _ = step_loss(objective(name, **params), drawn_for(name, params))
    assert loss == pytest.approx(wanted(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", [*FORMULAS, "remax"])
def test_a_gradient_is_that_of_finite_differences(name):
    """RL-33; but of `cispo`, whose clipped ratio has no gradient by intent."""
    params = FORMULAS.get(name, ({}, None))[0]
    made, drawn = objective(name, **params), drawn_for(name, params)
    if name == "remax":
        made._baselines = [0.3, 0.1]
    _, gradients = step_loss(made, drawn)
    for at, row in enumerate(POLICY):
        for token in range(len(row)):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [list(one) for one in POLICY]
                moved[at][token] += step
                ends.append(step_loss(made, drawn, moved)[0])
            wanted = (ends[0] - ends[1]) / 2e-6
            if name == "cispo":
                weight = min(math.exp(row[token] - OLD[at][token]), 1.3)
                wanted = -weight * flat(standard(REWARDS))[at] / 11
            assert gradients[at][token] == pytest.approx(wanted, abs=1e-7), (at, token)


def padded(rows):
    out = torch.zeros(4, 4, dtype=torch.float64)
    for at, one in enumerate(rows):
        out[at, : len(one)] = torch.tensor(one, dtype=torch.float64)
    return out


def alone():
    """An accelerator of one process."""
    return SimpleNamespace(
        num_processes=1,
        gather=lambda one: one,
        gather_for_metrics=lambda one: one,
        reduce=lambda one, reduction: one,
    )


def of_trl(advantages, **settings):
    """What TRL's trainer makes of the same log-probabilities: the loss and its gradient."""
    from trl import GRPOTrainer, RLOOTrainer

    kind = RLOOTrainer if settings.pop("rloo", False) else GRPOTrainer
    policy = padded(POLICY).requires_grad_()
    mask = (padded(POLICY) != 0).double()
    usual = {
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "beta": 0.0,
        "loss_type": "grpo",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "use_vllm": False,
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": MOST,
        "_entropy_bonus_enabled": False,
        "_metrics": MagicMock(),
        "model": SimpleNamespace(training=True),
        "accelerator": alone(),
        "args": SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        "_get_per_token_logps_and_entropies": lambda *_a, **_k: (policy, mask, None),
    }
    trainer = kind.__new__(kind)
    vars(trainer).update(usual | settings)
    loss = trainer._compute_loss(
        SimpleNamespace(training=True),
        {
            "prompt_ids": torch.zeros(4, 1, dtype=torch.long),
            "prompt_mask": torch.ones(4, 1, dtype=torch.long),
            "completion_ids": torch.zeros(4, 4, dtype=torch.long),
            "completion_mask": mask,
            "advantages": torch.tensor(advantages, dtype=torch.float64),
            "old_per_token_logps": padded(OLD),
            "old_logps": padded(OLD).sum(1),
            "ref_per_token_logps": padded(REFERENCE),
            "num_items_in_batch": mask.sum(),
        },
    )
    loss.backward()
    return loss.item(), [policy.grad[at, : len(one)].numpy() for at, one in enumerate(POLICY)]


TRL = {
    "grpo": ({}, {"beta": 0.04}),
    "dr-grpo": ({"max_new_tokens": MOST, "beta": "0.1"}, {"loss_type": "dr_grpo", "beta": 0.1}),
    "dapo": ({}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "gspo": (
        {"epsilon": "0.1", "epsilon_high": "0.2"},
        {"importance_sampling_level": "sequence", "epsilon_low": 0.1},
    ),
    "cispo": ({"epsilon_high": "0.3"}, {"loss_type": "cispo", "epsilon_high": 1.3}),
    "rloo": ({}, {"rloo": True}),
}


@pytest.mark.parametrize("name", TRL)
def test_a_loss_and_its_gradient_are_those_of_trl(name):
    """RL-34."""
    params, settings = TRL[name]
    made = objective(name, **params)
    drawn = drawn_for(name, params)
    advantages = [float(one) for row in made.advantages(drawn) for one in row]
    ours, gradients = step_loss(made, drawn)
    theirs, their_gradients = of_trl(advantages, **dict(settings))
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-9)
    for one, other in zip(gradients, their_gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)


# ------------------------------------------------------------------------------ limiting cases


@pytest.mark.parametrize("name", ["grpo", "dr-grpo", "gspo", "cispo", "bnpo", "rloo"])
def test_a_group_of_equal_rewards_moves_nothing(name):
    """RL-35."""
    params = {**FORMULAS[name][0], "beta": "0"}
    drawn = rollouts(([0.5, 0.5], [1.0, 1.0]), reference=False)
    _, gradients = step_loss(objective(name, **params), drawn)
    assert all((one == 0).all() for one in gradients)


def test_without_a_clip_the_loss_is_the_weighted_advantage():
    """RL-36."""
    made = objective("dr-grpo", epsilon="1000000", max_new_tokens=MOST)
    loss, _ = step_loss(made, rollouts(reference=False))
    wanted = -sum(
        (np.exp(p - o) * a).sum()
        for p, o, a in zip(arrays(POLICY), arrays(OLD), flat(CENTRED), strict=True)
    )
    assert loss == pytest.approx(wanted / (4 * MOST))


@pytest.mark.parametrize("name", FORMULAS)
def test_on_the_policy_that_said_it_the_gradient_is_reinforce(name):
    """RL-36: where the ratio is 1 it is that of -A log p, and nothing is clipped."""
    made = objective(name, **{**FORMULAS[name][0], "beta": "0"})
    drawn = rollouts(old=False, reference=False)
    _, gradients = step_loss(made, drawn)
    for group, two in zip(made.groups(drawn), (gradients[:2], gradients[2:]), strict=True):
        for part, gradient in zip(group.parts, two, strict=True):
            shares = 1 / len(gradient) if name == "gspo" else 1.0  # a mean inside the ratio
            scale = part.scale * (len(gradient) if name == "gspo" else 1.0)
            wanted = -(part.advantage.expand(len(gradient)) * scale * shares).numpy()
            np.testing.assert_allclose(gradient, wanted, rtol=1e-6)


def test_dr_grpo_and_grpo_differ_by_the_deviation_and_the_length():
    """RL-41."""
    grpo, doctor = objective("grpo"), objective("dr-grpo")
    ours, theirs = grpo.advantages(rollouts()), doctor.advantages(rollouts())
    for rewards, one, other in zip(REWARDS, ours, theirs, strict=True):
        deviation = np.std(rewards, ddof=1) + 1e-4
        for a, b in zip(one, other, strict=True):
            assert float(a) * deviation == pytest.approx(float(b), abs=1e-6)


def test_leaving_one_out_by_hand():
    """RL-45."""
    from kolm_build.steps.objectives.rloo import left_out

    assert left_out([3.0, 0.0, 0.0]) == [3.0, -1.5, -1.5]
    assert left_out([1.0, 2.0, 3.0, 6.0]) == pytest.approx([-8 / 3, -4 / 3, 0, 4])


def test_bnpo_becomes_reinforce_and_grpo_at_their_shapes():
    """RL-44: f is 1 at (1, 1), and 8 / pi times the deviation at (3/2, 3/2)."""
    from kolm_build.steps.objectives.bnpo import density, shapes

    for x in (0.1, 0.5, 0.7):
        assert density(x, 1.0, 1.0) == pytest.approx(1.0, rel=1e-12)
        assert density(x, 1.5, 1.5) == pytest.approx(
            8 / math.pi * math.sqrt(x * (1 - x)), rel=1e-12
        )
        assert density(x, 2.3, 7.4) == pytest.approx(beta_density(x, 2.3, 7.4), rel=1e-12)
    assert shapes([0.5, 0.5]) == (1.5, 1.5)
    assert shapes([0.2]) == (1.5, 1.5)


def test_bnpo_refuses_rewards_that_are_no_shares():
    """RL-44."""
    with pytest.raises(StepFailedError) as caught:
        objective("bnpo").advantages(rollouts(([1.0, 1.5], [0.0, 0.5])))
    assert caught.value.where == "row 1, completion 2"


def test_dapo_leaves_out_groups_without_differences_and_punishes_length():
    """RL-42."""
    made = objective("dapo", max_new_tokens=4, overlong_tokens=2)
    (first, other) = rollouts(([1.0, 0.0], [1.0, 1.0]), reference=False)
    groups = made.groups([first, other])
    assert [len(one.parts) for one in groups] == [2, 0]
    assert {part.scale for part in groups[0].parts} == {1 / 5}
    assert [made._punishment(one) for one in other.completions] == [0.0, -1.0]
    assert [made._punishment(one) for one in first.completions] == [-0.5, 0.0]


GAE = ([0.0, 0.0, 1.0], [0.5, 0.25, 0.75])


def test_generalised_advantages_by_hand():
    """RL-48: lambda 0 is one step's surprise, 1 the return less the value."""
    from kolm_build.steps.objectives.ppo import generalised_advantages

    assert generalised_advantages(*GAE, gamma=1.0, lam=0.0) == [-0.25, 0.5, 0.25]
    assert generalised_advantages(*GAE, gamma=1.0, lam=1.0) == [0.5, 0.75, 0.25]
    assert generalised_advantages(*GAE, gamma=0.5, lam=1.0) == [-0.25, 0.25, 0.25]
    assert generalised_advantages(*GAE, gamma=1.0, lam=0.5) == [0.0625, 0.625, 0.25]


def test_a_value_is_moved_towards_its_return_and_no_farther_than_its_clip():
    """RL-48."""
    from kolm_build.steps.objectives.ppo import token_rewards, value_losses

    values = torch.tensor([0.0, 1.0, 0.1])
    before, returns = torch.zeros(3), torch.tensor([1.0, 2.0, 1.0])
    found = value_losses(values, before, returns, 0.2)
    assert found.tolist() == pytest.approx([0.5, 0.5 * 1.8**2, 0.5 * 0.9**2])
    (first, _) = rollouts()
    apart = np.array(OLD[0]) - np.array(REFERENCE[0])
    wanted = -0.1 * apart + np.array([0, 0, 1.0])
    assert token_rewards(first, 0, 0.1) == pytest.approx(wanted.tolist())


def test_ppo_is_its_paper():
    """RL-48: equations 7, 9 and 11 in NumPy."""
    made = objective("ppo")
    drawn = rollouts(values=True)
    estimated = []
    for at, reward in enumerate(flat(REWARDS)):
        deltas = -0.05 * (np.array(OLD[at]) - np.array(REFERENCE[at]))
        deltas[-1] += reward
        values = np.array([*VALUES[at], 0.0])
        deltas += values[1:] - values[:-1]
        count = len(deltas)
        estimated.append(
            np.array(
                [sum(0.95 ** (u - t) * deltas[u] for u in range(t, count)) for t in range(count)]
            )
        )
    every = np.concatenate(estimated)
    parts = [part for group in made.groups(drawn) for part in group.parts]
    loss = 0.0
    for at, part in enumerate(parts):
        advantage = (estimated[at] - every.mean()) / (every.std() + 1e-8)
        np.testing.assert_allclose(part.advantage.numpy(), advantage, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(part.returns.numpy(), estimated[at] + VALUES[at], rtol=1e-6)
        loss += clip_loss(np.exp(np.array(POLICY[at]) - OLD[at]), advantage).sum() / 11
    assert step_loss(made, drawn)[0] == pytest.approx(loss, rel=1e-5, abs=1e-7)


def test_remax_measures_from_the_greedy_answer():
    """RL-47."""
    made = objective("remax", beta="0.1")
    made._baselines = [0.25, 0.5]
    loss, _ = step_loss(made, rollouts())
    wanted = 0.0
    for at, worth in enumerate(penalised(0.1)):
        wanted -= (worth - made._baselines[at // 2]) * sum(POLICY[at]) / 4
    assert loss == pytest.approx(wanted, rel=1e-6)


def test_gradients_of_a_row_are_added_with_one_graph_at_a_time():
    """RL-37: the sum's own gradient, whatever is in a part."""
    from kolm_build.steps.objectives._policy import accumulated

    leaf = torch.tensor([1.0, 2.0], requires_grad=True)
    total = accumulated(lambda part: (leaf * part).sum(), [3.0, 4.0, 5.0])
    assert leaf.grad.tolist() == [7.0, 7.0]
    total.backward()
    assert leaf.grad.tolist() == [12.0, 12.0]
    assert total.item() == 36.0
    accumulated(lambda _part: leaf.sum(), []).backward()


# --------------------------------------------------------------------------- comparing answers


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


FINITE = st.floats(-100, 100).map(lambda one: round(one, 3))
PROPERTY = settings(deadline=None, max_examples=60)


@PROPERTY
@given(st.lists(FINITE, min_size=2, max_size=9), FINITE)
def test_advantages_are_about_zero_and_do_not_move_with_all_rewards(rewards, more):
    """RL-35: as do those of every objective that measures from the prompt's own rewards."""
    from kolm_build.steps.objectives.dr_grpo import centred
    from kolm_build.steps.objectives.grpo import standardised
    from kolm_build.steps.objectives.rloo import left_out

    for advantages in (standardised, centred, left_out):
        found = advantages(rewards)
        assert math.fsum(found) == pytest.approx(0, abs=1e-6)
        moved = advantages([one + more for one in rewards])
        assert moved == pytest.approx(found, abs=1e-6)
        assert advantages([more] * len(rewards)) == pytest.approx([0.0] * len(rewards), abs=1e-9)


@PROPERTY
@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=9), st.floats(0, 1))
def test_looking_to_the_end_an_advantage_is_the_return_less_the_value(tokens, gamma):
    """RL-48: lambda is 1."""
    from kolm_build.steps.objectives.ppo import generalised_advantages

    rewards, values = map(list, zip(*tokens, strict=True))
    found = generalised_advantages(rewards, values, gamma=gamma, lam=1.0)
    for at, value in enumerate(values):
        wanted = sum(gamma**later * one for later, one in enumerate(rewards[at:])) - value
        assert found[at] == pytest.approx(wanted, abs=1e-6)


@PROPERTY
@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any),
    st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.99]),
)
def test_a_nucleus_has_its_probability_and_no_token_too_many(weights, top_p):
    """RL-5."""
    from kolm_build.runtime.draws import nucleus

    (kept,) = nucleus(np.array([weights]), top_p)
    left = sorted(one for one in kept if one)
    assert sum(left) >= top_p * sum(weights)
    assert sum(left[1:]) < top_p * sum(weights)
    assert min(left) >= max((a for a, b in zip(weights, kept, strict=True) if not b), default=0)


def test_the_catalogue_and_the_steps_name_the_same_parameters():
    """ALG-2: and the same defaults."""
    from kolm_build.core.catalogue import reinforcement, reward
    from kolm_build.core.catalogue.algorithm import read_parameters

    rows = (*reward.ROWS, *reinforcement.ROWS)
    assert sorted(row.id for row in rows) == sorted(REINFORCEMENT)
    for row in rows:
        given = dict(read_parameters(row.parameters, Fields({})))
        assert vars(objective(row.id, **given)) == vars(objective(row.id)), row.id


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


@pytest.mark.parametrize("name", ["grpo", "dr-grpo", "dapo", "gspo", "cispo", "bnpo"])
def test_the_divergence_is_added_to_the_loss(name):
    """RL-39."""
    with_it, without = objective(name, beta="0.5"), objective(name, beta="0")
    ours, theirs = (
        step_loss(with_it, rollouts())[0],
        step_loss(without, rollouts(reference=False))[0],
    )
    parts = [part for group in with_it.groups(rollouts()) for part in group.parts]
    wanted = sum(
        0.5 * part.scale * k3(p, r).sum()
        for part, p, r in zip(parts, arrays(POLICY), arrays(REFERENCE), strict=True)
    )
    assert ours - theirs == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", ["rloo", "reinforce-pp", "ppo"])
def test_the_divergence_is_part_of_the_reward(name):
    """RL-39: the loss itself has none."""
    made = objective(name, beta="0.5")
    drawn = rollouts(values=name == "ppo")
    parts = [part for group in made.groups(drawn) for part in group.parts]
    for part, policy in zip(parts, double(POLICY), strict=True):
        bare = replace(part, reference=None)
        assert torch.equal(made.token_losses(policy, part), made.token_losses(policy, bare))
    ours, theirs = made.advantages(drawn)[1][0], objective(name, beta="0").advantages(drawn)[1][0]
    assert not torch.equal(ours, theirs)
