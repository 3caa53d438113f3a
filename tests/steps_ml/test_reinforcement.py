"""Objectives over a policy's own completions: each is its paper's, and what TRL computes."""

from __future__ import annotations

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
from tests.steps_ml.policies import (
    CENTRED,
    FORMULAS,
    MOST,
    OLD,
    POLICY,
    REFERENCE,
    REWARDS,
    VALUES,
    alone,
    arrays,
    beta_density,
    clip_loss,
    double,
    drawn_for,
    flat,
    k3,
    objective,
    penalised,
    rollouts,
    standard,
    step_loss,
)

# Importing the trainers takes ten seconds and warns on the way.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]


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


FINITE = st.floats(-100, 100).map(lambda one: round(one, 3))
PROPERTY = settings(max_examples=60)


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


def test_the_catalogue_and_the_steps_name_the_same_parameters():
    """ALG-2: and the same defaults."""
    from kolm_build.core.catalogue import reinforcement, reward
    from kolm_build.core.catalogue.algorithm import read_parameters

    rows = (*reward.ROWS, *reinforcement.ROWS)
    assert sorted(row.id for row in rows) == sorted(REINFORCEMENT)
    for row in rows:
        given = dict(read_parameters(row.parameters, Fields({})))
        assert vars(objective(row.id, **given)) == vars(objective(row.id)), row.id


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
