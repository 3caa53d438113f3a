"""What objectives over a policy's own completions share (RL-30 to RL-39).

Completions are drawn and judged before an optimiser step, without gradients; the loss is a sum
over completions of losses of their tokens, so one completion's graph is in memory at a time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum, sqrt
from typing import Any, Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import count, decimal
from kolm_build.steps._conversations import read_prompts
from kolm_build.steps._given import Given
from kolm_build.steps._objective import Moment, Objective, Share
from kolm_build.steps._rewards import Judge, RewardParams, judged
from kolm_build.steps._rollouts import (
    Completion,
    PromptExample,
    Sampler,
    Sampling,
    samples_digest,
    tempered_log_probabilities,
)
from kolm_build.steps._sequences import Continuation

SMALL = 1e-4
"""Added to a standard deviation that is divided by, as TRL does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyParams:
    """What a recipe may say of any of these objectives.

    Attributes:
        sampling: How completions are drawn.
        reward: What they are worth.
        beta: Weight of the divergence from the reference; 0 for none.
        low: The ratio of probabilities is clipped at 1 - `low`.
        high: And at 1 + `high`.
        iterations: Optimiser steps that are made with the same completions.
    """

    sampling: Sampling
    reward: RewardParams
    beta: float
    low: float
    high: float
    iterations: int

    @classmethod
    def take(
        cls,
        fields: Fields,
        *,
        generations: int = 8,
        least: int = 2,
        beta: str = "0",
        epsilon: str = "0.2",
        epsilon_high: str | None = None,
    ) -> Self:
        """The parameters in `fields`; the arguments are what an algorithm starts from."""
        low = decimal(fields, "epsilon", epsilon, least=0.0, most=1e6)
        high = low
        if epsilon_high is not None:
            high = decimal(fields, "epsilon_high", epsilon_high, least=0.0, most=1e6)
        return cls(
            sampling=Sampling.take(fields, generations=generations, least=least),
            reward=RewardParams.take(fields),
            beta=_beta(fields, beta),
            low=low,
            high=high,
            iterations=count(fields, "iterations", 1),
        )

    @classmethod
    def once(cls, fields: Fields, *, generations: int, beta: str) -> Self:
        """The parameters in `fields` where a completion is used once, and nothing is clipped."""
        return cls(
            sampling=Sampling.take(fields, generations=generations, least=1),
            reward=RewardParams.take(fields),
            beta=_beta(fields, beta),
            low=0.0,
            high=0.0,
            iterations=1,
        )


def _beta(fields: Fields, default: str) -> float:
    return decimal(fields, "beta", default, least=0.0, most=100.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """What was drawn for a row, and all that is known of it before the optimiser step.

    Attributes:
        example: The row.
        completions: What the policy said.
        rewards: What each is worth.
        old: Log p of its tokens under the policy that said it; empty where not needed.
        reference: Log p of its tokens under the reference; empty where not needed.
        values: What a value head expected at its tokens; empty without one.
    """

    example: PromptExample
    completions: tuple[Completion, ...]
    rewards: tuple[float, ...]
    old: tuple[torch.Tensor, ...] = ()
    reference: tuple[torch.Tensor, ...] = ()
    values: tuple[torch.Tensor, ...] = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of each completion."""
        return tuple(one.sequence.tokens for one in self.completions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A completion in an optimiser step.

    Attributes:
        sequence: Its tokens.
        advantage: How much better than expected it is, shape () or (tokens,).
        scale: What the sum of its tokens' losses is multiplied with.
        old: Log p of its tokens under the policy that said it; None where that is the policy.
        reference: Log p of its tokens under the reference; None without a divergence.
        values: What a value head expected at its tokens; None without one.
        returns: What it should have expected; None without one.
    """

    sequence: Continuation
    advantage: torch.Tensor
    scale: float
    old: torch.Tensor | None = None
    reference: torch.Tensor | None = None
    values: torch.Tensor | None = None
    returns: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A row in an optimiser step.

    Attributes:
        rewards: What its completions are worth.
        parts: Those completions that have a loss.
        tokens: Mean number of tokens of its completions.
    """

    rewards: tuple[float, ...]
    parts: tuple[Part, ...]
    tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What one completion gives.

    Attributes:
        loss: Its loss, scaled, shape ().
        divergence: k3 of its tokens, their mean, shape ().
        clipped: Share of its tokens whose ratio was clipped, shape ().
        others: The objective's further figures, each shape ().
    """

    loss: torch.Tensor
    divergence: torch.Tensor
    clipped: torch.Tensor
    others: tuple[torch.Tensor, ...] = ()


class PromptObjective(Objective[PromptExample, Any]):
    """An objective over prompts to which a network says something.

    Args:
        sampling: How completions are drawn.
        reward: What they are worth; None where nothing is judged.
    """

    notes = ("samples",)

    def __init__(self, sampling: Sampling, reward: RewardParams | None) -> None:
        self.sampling = sampling
        self._params = reward

    def examples(self, given: Given) -> Sequence[PromptExample]:
        """The prompts of all rows; each must leave room for a completion."""
        made = [
            PromptExample(number=at, row=row, ids=tuple(given.model.chat.prompt_ids(row.messages)))
            for at, row in enumerate(read_prompts(given.rows()))
        ]
        for one in made:
            given.tokens.check(len(one.ids) + self.sampling.max_new_tokens, one.where)
        self.sampler = Sampler(given, self.sampling)
        self.given = given
        if self._params is not None:
            self.reward = self._params.reward(given, made)
        return made

    def columns(self, examples: Sequence[PromptExample]) -> Mapping[str, Sequence[Sequence[int]]]:
        """The prompts' token ids."""
        return {"prompt_ids": [list(one.ids) for one in examples]}

    def noted(self) -> Mapping[str, str]:
        """The digest of everything said in this step."""
        return {"samples": self._samples}

    def note(self, said: Sequence[Sequence[Completion]]) -> None:
        """Take what was said in this step."""
        self._samples = samples_digest(said)

    def referred(self, network: Any, sequences: Sequence[Continuation]) -> list[torch.Tensor]:
        """Log p of every token of `sequences` under the reference, at the temperature."""
        with self.given.change.reference(network):
            return [self.log_probabilities(network, one) for one in sequences]

    def log_probabilities(self, network: Any, sequence: Continuation) -> torch.Tensor:
        """Log p of the tokens of `sequence` at the temperature, shape (tokens,)."""
        return tempered_log_probabilities(network, sequence, self.sampling.temperature)


class PolicyObjective(PromptObjective):
    """An objective that moves a policy along the advantages of its completions.

    Args:
        params: The recipe's words.
    """

    figures: tuple[str, ...] = (
        "reward",
        "reward_std",
        "completion_tokens",
        "divergence",
        "clipped",
    )
    needs_old = False
    """Whether log p of what is said is needed even where it is used once."""

    def __init__(self, params: PolicyParams) -> None:
        super().__init__(params.sampling, params.reward)
        self.params = params
        self.repeats = params.iterations
        self.needs_reference = params.beta > 0.0

    @abstractmethod
    def advantages(self, rollouts: Sequence[Rollout]) -> Sequence[Sequence[torch.Tensor]]:
        """The advantage of each completion of each row, shape () or (tokens,)."""

    def scales(self, rollouts: Sequence[Rollout]) -> Sequence[Sequence[float]]:
        """What the sum of each completion's token losses is multiplied with.

        The mean over completions of the means over their tokens.
        """
        return per_completion(rollouts)

    def token_losses(self, policy: torch.Tensor, part: Part) -> torch.Tensor:
        """The losses of a completion's tokens, shape (tokens,), of `policy` = log p."""
        loss = clipped(log_ratio(policy, part), part.advantage, self.params.low, self.params.high)
        return penalised(loss, policy, part, self.params.beta)

    def collect(
        self, network: Any, examples: Sequence[PromptExample], seeds: Sequence[int], judge: Judge
    ) -> list[Rollout]:
        """Draw and judge completions of `examples`."""
        drawn = self.sampler.draw(network, [one.ids for one in examples], seeds)
        return [
            Rollout(example=example, completions=tuple(said), rewards=judged(judge, example, said))
            for example, said in zip(examples, drawn, strict=True)
        ]

    def known(self, network: Any, rollout: Rollout) -> Rollout:
        """`rollout` with the log-probabilities that the step needs."""
        sequences = [one.sequence for one in rollout.completions]
        old: Sequence[torch.Tensor] = ()
        reference: Sequence[torch.Tensor] = ()
        if self.repeats > 1 or self.needs_old:
            old = [self.log_probabilities(network, one) for one in sequences]
        if self.params.beta > 0.0:
            reference = self.referred(network, sequences)
        return Rollout(
            example=rollout.example,
            completions=rollout.completions,
            rewards=rollout.rewards,
            old=tuple(old),
            reference=tuple(reference),
        )

    def prepare(
        self, network: Any, examples: Sequence[PromptExample], moment: Moment
    ) -> Sequence[Group]:
        """Draw and judge; the same again while the completions are used again."""
        if moment.repeat == 0:
            self._groups = self._fresh(network, examples, moment)
        return self._groups

    def _fresh(
        self, network: Any, examples: Sequence[PromptExample], moment: Moment
    ) -> Sequence[Group]:
        with self.reward.judging() as judge:
            rollouts = self.collect(network, examples, moment.seeds, judge)
        self.note([one.completions for one in rollouts])
        rollouts = [self.known(network, one) for one in rollouts]
        return self.groups(rollouts)

    def groups(self, rollouts: Sequence[Rollout]) -> Sequence[Group]:
        """The rows of a step, of all that was drawn for it."""
        return [
            group_of(*one)
            for one in zip(rollouts, self.advantages(rollouts), self.scales(rollouts), strict=True)
        ]

    def share(self, network: Any, example: PromptExample, context: Group) -> Share:
        """The row's part of the step's loss."""
        del example
        ran: list[Ran] = []

        def loss(part: Part) -> torch.Tensor:
            ran.append(self.run(network, part))
            return ran[-1].loss

        total = accumulated(loss, context.parts)
        figures = _figures(context, ran)
        missing = len(self.figures) - len(figures)  # of a row that has no part in the step
        return Share(loss=total, figures=(*figures, *[torch.zeros(())] * missing))

    def run(self, network: Any, part: Part) -> Ran:
        """What one completion gives."""
        return self.ran(self.log_probabilities(network, part.sequence), part)

    def ran(self, policy: torch.Tensor, part: Part) -> Ran:
        """What one completion gives, of `policy` = log p of its tokens."""
        losses = self.token_losses(policy, part)
        now = policy.detach()
        return Ran(
            loss=losses.sum() * part.scale,
            divergence=_divergence(now, part),
            clipped=_clipped_share(log_ratio(now, part), part, self.params),
        )


def group_of(
    rollout: Rollout, advantages: Sequence[torch.Tensor], scales: Sequence[float]
) -> Group:
    """A row of a step; a completion of scale 0 has no part in it."""
    parts = [
        Part(
            sequence=one.sequence,
            advantage=advantages[at],
            scale=scales[at],
            old=rollout.old[at] if rollout.old else None,
            reference=rollout.reference[at] if rollout.reference else None,
            values=rollout.values[at] if rollout.values else None,
        )
        for at, one in enumerate(rollout.completions)
        if scales[at] != 0.0
    ]
    return Group(
        rewards=rollout.rewards,
        parts=tuple(parts),
        tokens=sum(rollout.tokens) / len(rollout.tokens),
    )


def accumulated(loss: Callable[[Any], torch.Tensor], parts: Sequence[Any]) -> torch.Tensor:
    """The sum of `loss` of all `parts`, with one part's graph in memory at a time.

    The gradients of all but the last are added to the parameters' at once, in the order of the
    parts; those of the last follow from the sum. 0 without parts.
    """
    done = torch.zeros(())
    for part in parts[:-1]:
        one = loss(part)
        one.backward()
        done = done + one.detach()
    last = loss(parts[-1]) if parts else torch.zeros((), requires_grad=True)
    return last + done


def log_ratio(policy: torch.Tensor, part: Part) -> torch.Tensor:
    """Log of p over p of the policy that said it, of each token; 0 where that is `policy`."""
    return policy - (policy.detach() if part.old is None else part.old)


def clipped(
    log_ratio: torch.Tensor, advantage: torch.Tensor, low: float, high: float
) -> torch.Tensor:
    """-min(r A, clip(r, 1 - low, 1 + high) A), r = exp(log_ratio) (arXiv:1707.06347, eq. 7)."""
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1.0 - low, 1.0 + high) * advantage)


def k3(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """p_ref / p - log (p_ref / p) - 1 of each token (arXiv:2402.03300, equation 4)."""
    ratio = reference - policy
    return ratio.exp() - ratio - 1.0


def penalised(losses: torch.Tensor, policy: torch.Tensor, part: Part, beta: float) -> torch.Tensor:
    """`losses` and beta times the divergence of each token."""
    return losses if part.reference is None else losses + beta * k3(policy, part.reference)


def per_completion(rollouts: Sequence[Rollout]) -> Sequence[Sequence[float]]:
    """Scales of the mean over completions of the means over their tokens."""
    count = sum(len(one.completions) for one in rollouts)
    return [[1.0 / (tokens * count) for tokens in one.tokens] for one in rollouts]


def per_token(rollouts: Sequence[Rollout]) -> Sequence[Sequence[float]]:
    """Scales of the mean over all tokens of all completions."""
    total = sum(sum(one.tokens) for one in rollouts)
    return [[1.0 / total] * len(one.completions) for one in rollouts]


def summed(rollouts: Sequence[Rollout]) -> Sequence[Sequence[float]]:
    """Scales of the mean over completions of the sums over their tokens."""
    count = sum(len(one.completions) for one in rollouts)
    return [[1.0 / count] * len(one.completions) for one in rollouts]


def mean(values: Sequence[float]) -> float:
    """The mean; its sum is rounded once."""
    return fsum(values) / len(values)


def deviation(values: Sequence[float], *, less: int = 1) -> float:
    """The standard deviation over n - `less`; 0 for a single value."""
    if len(values) <= less:
        return 0.0
    middle = mean(values)
    return sqrt(fsum((one - middle) * (one - middle) for one in values) / (len(values) - less))


def scalars(values: Sequence[float]) -> list[torch.Tensor]:
    """Each value as a tensor, shape (), float32."""
    return [torch.tensor(one) for one in values]


def k1_sums(rollout: Rollout) -> list[float]:
    """Log (p / p_ref) of each completion, by the policy that said it; 0 without a reference."""
    if not rollout.reference:
        return [0.0] * len(rollout.completions)
    return [
        fsum((old - reference).tolist())
        for old, reference in zip(rollout.old, rollout.reference, strict=True)
    ]


def _figures(group: Group, ran: Sequence[Ran]) -> tuple[torch.Tensor, ...]:
    columns = zip(*((one.divergence, one.clipped, *one.others) for one in ran), strict=True)
    return (
        torch.tensor(mean(group.rewards)),
        torch.tensor(deviation(group.rewards)),
        torch.tensor(group.tokens),
        *(torch.stack(column).mean() for column in columns),
    )


def _divergence(policy: torch.Tensor, part: Part) -> torch.Tensor:
    return torch.zeros(()) if part.reference is None else k3(policy, part.reference).mean()


def _clipped_share(log_ratio: torch.Tensor, part: Part, params: PolicyParams) -> torch.Tensor:
    ratio = log_ratio.exp()
    over = (ratio > 1.0 + params.high) & (part.advantage > 0)
    under = (ratio < 1.0 - params.low) & (part.advantage < 0)
    return (over | under).float().mean()
