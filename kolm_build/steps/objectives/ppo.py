"""``ppo``: proximal policy optimisation (arXiv:1707.06347, equations 7, 9, 11 and 12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import decimal
from kolm_build.steps._reward_head import attach
from kolm_build.steps._sequences import Continuation
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._policy import (
    Group,
    Part,
    PolicyObjective,
    PolicyParams,
    Ran,
    Rollout,
    clipped,
    log_ratio,
    per_token,
)
from kolm_build.steps.objectives.reinforce_pp import normalised


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


VALUE_HEAD = "value_head"


class Ppo(PolicyObjective):
    """The clipped ratio with advantages from a value head, which is trained with the policy.

    The head is one number for each last hidden state; it begins as 0 and is not kept.

    Args:
        params: What all these objectives have.
        gamma: What a reward one token later is worth.
        lam: How far an advantage looks ahead: 0 for one token, 1 for all of them.
        value_coefficient: Weight of the value's loss (c1 of equation 9).
        value_epsilon: How far a value may move from what it was.
    """

    figures = (*PolicyObjective.figures, "value_loss")
    needs_old = True

    def __init__(
        self,
        params: PolicyParams,
        *,
        gamma: float,
        lam: float,
        value_coefficient: float,
        value_epsilon: float,
    ) -> None:
        super().__init__(params)
        self._gamma, self._lam = gamma, lam
        self._coefficient, self._epsilon = value_coefficient, value_epsilon

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(
            PolicyParams.take(fields, generations=1, least=1, beta="0.05"),
            gamma=decimal(fields, "gamma", "1", least=0.0, most=1.0),
            lam=decimal(fields, "gae_lambda", "0.95", least=0.0, most=1.0),
            value_coefficient=decimal(fields, "value_coefficient", "0.1", least=0.0, most=100.0),
            value_epsilon=decimal(fields, "value_epsilon", "0.2", least=0.0, most=1e6),
        )

    def attach(self, network: Any) -> None:
        """Give the network its value head."""
        attach(network, VALUE_HEAD)

    def known(self, network: Any, rollout: Rollout) -> Rollout:
        """The log-probabilities, and what the head expects at every token."""
        values = [self._looked(network, one.sequence)[1] for one in rollout.completions]
        return replace(super().known(network, rollout), values=tuple(values))

    def advantages(self, rollouts: Sequence[Rollout]) -> Sequence[Sequence[torch.Tensor]]:
        """Equation 11 for every token, as standard scores over all tokens of the step."""
        return normalised([self._estimated(one) for one in rollouts])

    def scales(self, rollouts: Sequence[Rollout]) -> Sequence[Sequence[float]]:
        """The mean over all tokens."""
        return per_token(rollouts)

    def groups(self, rollouts: Sequence[Rollout]) -> Sequence[Group]:
        """The rows, each token with what its value should have been: advantage + value."""
        return [
            replace(group, parts=tuple(map(_with_returns, group.parts, self._estimated(one))))
            for group, one in zip(super().groups(rollouts), rollouts, strict=True)
        ]

    def token_losses(self, policy: torch.Tensor, part: Part) -> torch.Tensor:
        """Equation 7."""
        return clipped(log_ratio(policy, part), part.advantage, self.params.low, self.params.high)

    def run(self, network: Any, part: Part) -> Ran:
        """Equation 9: the policy's loss and the value's."""
        policy, values = self._looked(network, part.sequence)
        ran = self.ran(policy, part)
        assert part.values is not None, "`known` looked"
        assert part.returns is not None, "`groups` computed them"
        loss = value_losses(values, part.values, part.returns, self._epsilon).sum() * part.scale
        return replace(ran, loss=ran.loss + self._coefficient * loss, others=(loss.detach(),))

    def _looked(self, network: Any, sequence: Continuation) -> tuple[torch.Tensor, torch.Tensor]:
        """Log p of each token said, and the value before it, both shape (tokens,)."""
        ids = torch.tensor([sequence.ids])
        places = torch.arange(sequence.start - 1, len(sequence.ids) - 1)
        seen = network(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            logits_to_keep=places,
            output_hidden_states=True,
        )
        logits = seen.logits[0].float() / self.sampling.temperature
        policy = -torch.nn.functional.cross_entropy(
            logits, ids[0, sequence.start :], reduction="none"
        )
        hidden = seen.hidden_states[-1][0, -len(sequence.ids) :]  # adapters may put vectors before
        values = network.get_submodule(VALUE_HEAD)(hidden[places])
        return policy, values

    def _estimated(self, rollout: Rollout) -> list[list[float]]:
        return [
            generalised_advantages(
                token_rewards(rollout, at, self.params.beta),
                values.tolist(),
                gamma=self._gamma,
                lam=self._lam,
            )
            for at, values in enumerate(rollout.values)
        ]


def token_rewards(rollout: Rollout, at: int, beta: float) -> list[float]:
    """-beta log (p / p_ref) of each token of a completion; its reward on the last one's."""
    rewards = [0.0] * rollout.tokens[at]
    if rollout.reference:
        apart = (rollout.old[at] - rollout.reference[at]).tolist()
        rewards = [-beta * one for one in apart]
    rewards[-1] += rollout.rewards[at]
    return rewards


def generalised_advantages(
    rewards: Sequence[float], values: Sequence[float], *, gamma: float, lam: float
) -> list[float]:
    """Equations 11 and 12: sums of (gamma lam)^l (r + gamma V' - V); nothing follows the end."""
    following, advantage, found = 0.0, 0.0, []
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        surprise = reward + gamma * following - value
        advantage = surprise + gamma * lam * advantage
        found.append(advantage)
        following = value
    return found[::-1]


def value_losses(
    values: torch.Tensor, before: torch.Tensor, returns: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """max((V - R)^2, (clip(V, V_old - epsilon, V_old + epsilon) - R)^2) / 2 of each token."""
    near = before + (values - before).clamp(-epsilon, epsilon)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


def _with_returns(part: Part, advantages: Sequence[float]) -> Part:
    assert part.values is not None, "`known` looked"
    return replace(part, returns=torch.tensor(advantages) + part.values)


TAKE: Take = Ppo.take
