"""Two prompts with two completions each, and what papers make of them, in NumPy."""

from __future__ import annotations

import importlib
import math
from types import SimpleNamespace

import numpy as np
import torch

from kolm_build.core.fields import Fields

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


def alone():
    """An accelerator of one process."""
    return SimpleNamespace(
        num_processes=1,
        gather=lambda one: one,
        gather_for_metrics=lambda one: one,
        reduce=lambda one, reduction: one,
    )
