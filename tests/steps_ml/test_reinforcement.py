"""Objectives over a policy's own completions: each is its paper's, and what TRL computes."""

from __future__ import annotations

import importlib
import math
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from kolm_build.core.fields import Fields
from kolm_build.errors import StepFailedError
from kolm_build.steps.table import REINFORCEMENT

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]

# Two prompts with two completions each: log p of every token, now, when said, and before training.
POLICY = ([-0.7, -1.2, -0.1], [-2.0, -0.4], [-1.1, -0.3], [-0.6, -1.9, -0.2, -0.8])
OLD = ([-0.9, -1.0, -0.4], [-1.5, -0.6], [-0.8, -0.5], [-0.9, -1.1, -0.5, -0.7])
REFERENCE = ([-1.0, -0.8, -0.5], [-1.2, -0.9], [-0.7, -0.6], [-1.3, -1.0, -0.4, -0.5])
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
    """RL-33, RL-40 to RL-47: in NumPy, written from the equations."""
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


def test_the_catalogue_and_the_steps_name_the_same_parameters():
    """ALG-2: and the same defaults."""
    from kolm_build.core.catalogue import reinforcement, reward
    from kolm_build.core.catalogue.algorithm import read_parameters

    rows = (*reward.ROWS, *reinforcement.ROWS)
    assert sorted(row.id for row in rows) == sorted(REINFORCEMENT)
    for row in rows:
        given = dict(read_parameters(row.parameters, Fields({})))
        assert vars(objective(row.id, **given)) == vars(objective(row.id)), row.id
