"""Online reinforcement learning: a policy is moved by rewards of what it says itself.

In the formulas q = p / p_old is the ratio of a token's probabilities under the policy and the one
that said it, A its advantage, r a completion's reward, and k3 = p_ref / p - log (p_ref / p) - 1.
"""

from __future__ import annotations

from kolm_build.core.catalogue.algorithm import (
    ITERATIONS,
    Algorithm,
    Choice,
    Decimal,
    Integer,
    Parameter,
    Role,
)

REWARDS = ("exact", "file", "label", "model", "regex")
UNTIL_DRAWN = "1 forward a token drawn"

REWARD: tuple[Parameter, ...] = (
    Choice(name="reward_by", options=REWARDS, default="file", help="what judges completions"),
    Integer(
        name="reward_timeout_seconds",
        default=30,
        least=1,
        help="most seconds of a call of a file's function",
    ),
)
ROLES = (
    Role(
        name="reward",
        kind="code",
        required=False,
        used_with=("reward_by", "file"),
        help="a Python file with `def reward(prompt, completion, reference, fields)`",
    ),
    Role(
        name="reward_model",
        kind="model",
        required=False,
        used_with=("reward_by", "model"),
        help="a reward model, of a stage such as reward-bt",
    ),
)
DRAWING: tuple[Parameter, ...] = (
    Integer(name="max_new_tokens", default=64, least=1, help="most tokens of a completion"),
    Decimal(name="temperature", default="1", most="100", help="logits are divided by it"),
    Decimal(name="top_p", default="1", help="share of the likeliest tokens that are drawn from"),
)


def _generations(default: int = 8, least: int = 2) -> Integer:
    return Integer(name="generations", default=default, least=least, help="completions of a prompt")


def _iterations() -> Integer:
    return Integer(
        name=ITERATIONS, default=1, least=1, help="optimiser steps with the same completions"
    )


def _number(name: str, default: str, help_text: str, most: str = "100") -> Decimal:
    return Decimal(name=name, default=default, most=most, help=help_text)


def _beta(default: str) -> Decimal:
    return _number("beta", default, "weight of the divergence from the reference")


def _closeness(default: str = "0.1") -> Decimal:
    return _number("beta", default, "how close the policy is held")


def _epsilon(default: str = "0.2") -> Decimal:
    return _number("epsilon", default, "the ratio is clipped at 1 less this", most="1000000")


def _epsilon_high(default: str) -> Decimal:
    return _number("epsilon_high", default, "and at 1 more than this", most="1000000")


def _policy(
    beta: str, *more: Parameter, epsilon: str = "0.2", generations: int = 8, least: int = 2
) -> tuple[Parameter, ...]:
    """The parameters of an objective that moves a policy along advantages."""
    own = (_generations(generations, least), _beta(beta), _epsilon(epsilon), _iterations())
    return (*DRAWING, *REWARD, *own, *more)


def _row(
    name: str,
    title: str,
    paper: str,
    minimises: str,
    parameters: tuple[Parameter, ...],
    *,
    oracle: str,
    passes: str,
    schema: str = "prompts",
    roles: tuple[Role, ...] = ROLES,
) -> Algorithm:
    return Algorithm(
        id=name,
        family="reinforcement",
        title=title,
        paper=paper,
        minimises=minimises,
        schema=schema,
        parameters=parameters,
        roles=roles,
        step=name,
        backing=f"kolm_build.steps.objectives.{name.replace('-', '_')}",
        oracle=oracle,
        passes=f"{UNTIL_DRAWN}; {passes}",
    )


RATIO = "1 forward for q with iterations over 1, 1 for k3 with beta over 0; 1 forward, 1 backward"
TWO = "2 forward for the reference, 2 forward, 2 backward"

ROWS: tuple[Algorithm, ...] = (
    _row(
        "grpo",
        "Group relative policy optimisation",
        "arXiv:2402.03300, equation 3",
        "-min(q A, clip(q) A) + beta k3, mean of means; A = (r - mean) / std of the prompt's",
        _policy("0.04"),
        oracle="trl.GRPOTrainer, loss_type grpo",
        passes=RATIO,
    ),
    _row(
        "dr-grpo",
        "GRPO done right",
        "arXiv:2503.20783, section 3.2",
        "-min(q A, clip(q) A) over max_new_tokens; A = r - mean of the prompt's",
        _policy("0"),
        oracle="trl.GRPOTrainer, loss_type dr_grpo",
        passes=RATIO,
    ),
    _row(
        "dapo",
        "Decoupled clip and dynamic sampling",
        "arXiv:2503.14476, equation 8",
        "-min(q A, clip(q) A), mean over tokens; groups of equal rewards are drawn anew",
        _policy(
            "0",
            _epsilon_high("0.28"),
            Integer(name="resamples", default=2, help="how often equal rewards are drawn anew"),
            Integer(
                name="overlong_tokens",
                default=0,
                help="tokens before the most in which the reward falls by 1; 0 for none",
            ),
        ),
        oracle="trl.GRPOTrainer, loss_type dapo",
        passes=RATIO,
    ),
    _row(
        "gspo",
        "Group sequence policy optimisation",
        "arXiv:2507.18071, equations 5 to 7",
        "-min(s A, clip(s) A), s = (p / p_old of the completion)^(1 / tokens)",
        _policy("0", _epsilon_high("0.0004"), epsilon="0.0003"),
        oracle="trl.GRPOTrainer, importance_sampling_level sequence",
        passes=RATIO,
    ),
    _row(
        "cispo",
        "Clipped importance sampling policy optimisation",
        "arXiv:2506.13585, equations 4 and 5",
        "-clip(q) A log p, no gradient through clip(q), mean over tokens",
        _policy("0", _epsilon_high("4"), epsilon="1"),
        oracle="trl.GRPOTrainer, loss_type cispo",
        passes=RATIO,
    ),
    _row(
        "bnpo",
        "Beta normalisation policy optimisation",
        "arXiv:2506.02864, section 4",
        "-min(q A, clip(q) A); A = (r - mean) / a beta density of the mean, fitted to the step",
        _policy("0"),
        oracle="NumPy",
        passes=RATIO,
    ),
    _row(
        "rloo",
        "REINFORCE leave-one-out",
        "arXiv:2402.14740, section 2.3",
        "-min(Q A, clip(Q) A), Q the ratio of completions; A = R - mean of the others' R",
        _policy("0.05"),
        oracle="trl.RLOOTrainer",
        passes=RATIO,
    ),
    _row(
        "reinforce-pp",
        "REINFORCE++",
        "arXiv:2501.03262, equations 8 to 10",
        "-min(q A, clip(q) A); A = the standard score over the step of r - beta k1 to go",
        _policy("0.01", generations=1, least=1),
        oracle="NumPy",
        passes=RATIO,
    ),
    _row(
        "remax",
        "REINFORCE against the greedy answer",
        "arXiv:2310.10505, section 3.2",
        "-(R - r(greedy answer)) log p of the completion",
        (*DRAWING, *REWARD, _generations(1, 1), _beta("0.05")),
        oracle="NumPy",
        passes="1 more completion, greedy; 2 forward with beta over 0; 1 forward, 1 backward",
    ),
    _row(
        "ppo",
        "Proximal policy optimisation",
        "arXiv:1707.06347, equations 7, 9, 11 and 12",
        "-min(q A, clip(q) A) + c (V - R)^2 / 2; A by generalised advantage estimation",
        _policy(
            "0.05",
            _number("gamma", "1", "what a reward one token later is worth", most="1"),
            _number("gae_lambda", "0.95", "how far advantages look ahead", most="1"),
            _number("value_coefficient", "0.1", "weight of the value's loss"),
            _number("value_epsilon", "0.2", "how far a value may move", most="1000000"),
            generations=1,
            least=1,
        ),
        oracle="NumPy",
        passes="2 forward, 1 for the reference; 1 forward, 1 backward",
    ),
    _row(
        "online-dpo",
        "Online direct preference optimisation",
        "arXiv:2402.04792, algorithm 1",
        "-log sigmoid(beta (log ratio of the better answer - of the worse)), both the policy's",
        (*DRAWING, *REWARD, _closeness(), _iterations()),
        oracle="NumPy",
        passes=TWO,
    ),
    _row(
        "xpo",
        "Exploratory preference optimisation",
        "arXiv:2405.21046, algorithm 1",
        "online DPO of an answer of the policy and one of the reference + alpha log p of that",
        (
            *DRAWING,
            *REWARD,
            _closeness(),
            _iterations(),
            _number("alpha", "0.00001", "weight of the exploration"),
        ),
        oracle="NumPy",
        passes=TWO,
    ),
    _row(
        "nash-md",
        "Nash learning by mirror descent",
        "arXiv:2312.00886, section 7",
        "-(P(y beats y') - 1/2 - tau log (p / p_ref)) log p(y), y' of a mixture with p_ref",
        (
            *DRAWING,
            *REWARD,
            _number("tau", "0.1", "weight of the divergence from the reference"),
            _number("mixture", "0.5", "share of the reference in the opponent", most="1"),
        ),
        oracle="NumPy",
        passes="3 forward a token drawn of the two; 2 forward, 1 backward",
    ),
    _row(
        "spin",
        "Self-play fine-tuning",
        "arXiv:2401.01335, equation 4.7",
        "-log sigmoid(beta (log ratio of the row's answer - of the model's as it was))",
        (*DRAWING, _closeness(), _iterations()),
        oracle="NumPy",
        passes=TWO,
        schema="answers",
        roles=(),
    ),
    _row(
        "self-rewarding",
        "Self-rewarding language model",
        "arXiv:2401.10020, section 2",
        "DPO of the best and the worst answer, by the points that the model gives itself",
        (*DRAWING, _generations(4), _closeness(), _iterations()),
        oracle="NumPy",
        passes=f"6 forward an answer drawn; {TWO}",
        roles=(),
    ),
    _row(
        "raft",
        "Reward ranked fine-tuning",
        "arXiv:2304.06767, algorithm 1",
        "-log p of the best of several answers",
        (*DRAWING, *REWARD, _generations(), _iterations()),
        oracle="NumPy",
        passes="1 forward, 1 backward of the best",
    ),
    _row(
        "star",
        "Self-taught reasoner",
        "arXiv:2203.14465, algorithm 1",
        "-log p of an answer that is right, drawn with a hint where none is without",
        (
            *DRAWING,
            *REWARD,
            _generations(1, 1),
            _iterations(),
            Choice(
                name="rationalise", options=("no", "yes"), default="yes", help="whether to hint"
            ),
        ),
        oracle="NumPy",
        passes="1 forward, 1 backward of a right one",
    ),
)
