"""``minillm``: the reverse divergence of whole answers, on policy (arXiv:2306.08543, section 2.2).

The gradient of KL(q || t) of sequences is a policy gradient whose reward at a token is
r = log t - log q. MiniLLM takes it apart: the reward of the token itself is summed over the whole
vocabulary (single-step decomposition, equation 3), and only that of what follows, R, is left to
what was drawn. Answers are drawn from a share of the teacher and the rest of the student
(equation 4), which weights w correct token by token (equation 5), and R is a mean over the tokens
that follow, not a sum (equation 6). Equation 7 puts all of it together.

What the paper adds beside is not here: an answer is used in one optimiser step, so no ratio needs
clipping, and there is no loss of a corpus of plain text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch.nn.functional import nll_loss

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import choice, count, decimal
from kolm_build.steps._given import Given
from kolm_build.steps._objective import Moment, Share
from kolm_build.steps._rollouts import PromptExample, Sampling
from kolm_build.steps._sequences import answer_logits, mixture
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._policy import PromptObjective
from kolm_build.steps.objectives._teaching import divergence, load_teacher
from kolm_build.steps.objectives.gkd import Said

RETURNS = ("mean", "sum")


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


class MiniLlm(PromptObjective):
    """Equation 7 over all tokens that were drawn in a step, their mean.

    Args:
        max_new_tokens: Most tokens of an answer.
        teacher_mix: The teacher's share of what is drawn from; 0 for the student alone.
        returns: Whether R is the mean or the sum over the tokens that follow.
    """

    figures = ("divergence", "weight", "said_tokens")

    def __init__(self, max_new_tokens: int, teacher_mix: float, returns: str) -> None:
        once = Sampling(generations=1, max_new_tokens=max_new_tokens, temperature=1.0, top_p=1.0)
        super().__init__(once, None)
        self.teacher_mix = teacher_mix
        self.returns = returns

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(
            count(fields, "max_new_tokens", 64),
            decimal(fields, "teacher_mix", "0.2", least=0.0, most=0.99),
            choice(fields, "returns", "mean", RETURNS),
        )

    def examples(self, given: Given) -> Sequence[PromptExample]:
        """The prompts of all rows; each must leave room for an answer."""
        self.teacher = load_teacher(given)
        return super().examples(given)

    def prepare(
        self, network: Any, examples: Sequence[PromptExample], moment: Moment
    ) -> Sequence[Said]:
        """Answers from the mixture."""
        drawn = self.sampler.draw_blended(
            network,
            self.teacher.network,
            [one.ids for one in examples],
            moment.seeds,
            share=self.teacher_mix,
        )
        self.note(drawn)
        tokens = sum(one.sequence.tokens for (one,) in drawn)
        return [Said(completion=one, tokens=tokens) for (one,) in drawn]

    def share(self, network: Any, example: PromptExample, context: Said) -> Share:
        """The row's part of the mean over tokens."""
        del example
        sequence = context.completion.sequence
        with torch.no_grad():
            taught, _ = answer_logits(self.teacher.network, sequence)
        logits, ids = answer_logits(network, sequence)
        student, teacher = torch.log_softmax(logits, dim=-1), torch.log_softmax(taught, dim=-1)
        weights = drawn_weights(student, teacher, ids, self.teacher_mix)
        losses = token_losses(student, teacher, ids, weights, self.returns)
        told = divergence(student, teacher).mean().detach()
        figures = (told, weights.mean(), told.new_tensor(float(sequence.tokens)))
        return Share(loss=losses.sum() / context.tokens, figures=figures)


def token_losses(
    student: torch.Tensor,
    teacher: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    returns: str,
) -> torch.Tensor:
    """Equation 7 at each token; the value is the divergence there, weighted.

    Args:
        student: Log-probabilities, shape (tokens, words).
        teacher: The teacher's, of the same shape.
        ids: The tokens that were drawn, shape (tokens,).
        weights: What each counts, shape (tokens,), held.
        returns: Whether what follows is a mean or a sum.

    Returns:
        Shape (tokens,). Where both models are equal, value and gradient are 0, whatever was drawn.
    """
    said, rewards = at(student, ids), (at(teacher, ids) - at(student, ids)).detach()
    later = rewards.new_tensor(rewards_to_come(rewards.tolist(), returns))
    single = divergence(student, teacher)  # -(sum over the vocabulary of q r)
    long = -later * (said - said.detach())  # 0, with the gradient -R (grad q) / q
    return weights * (single + long)


def drawn_weights(
    student: torch.Tensor, teacher: torch.Tensor, ids: torch.Tensor, share: float
) -> torch.Tensor:
    """The w of each token, held: q / (share t + (1 - share) q), as equation 5 is approximated."""
    if share == 0.0:
        return torch.ones(len(ids), dtype=student.dtype)
    said, taught = at(student, ids).detach(), at(teacher, ids).detach()
    return torch.exp(said - mixture(taught, said, share))


def rewards_to_come(rewards: Sequence[float], returns: str) -> list[float]:
    """R after each token: the mean (equation 6) or sum of the rewards of the later tokens.

    Equation 6 divides by one less than there are of them, which is 0 at the last token but one;
    the mean is meant. After the last token it is 0.
    """
    total, found = 0.0, [0.0] * len(rewards)
    for place in range(len(rewards) - 2, -1, -1):
        total += rewards[place + 1]
        later = len(rewards) - 1 - place
        found[place] = total / later if returns == "mean" else total
    return found


def at(log_probabilities: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Those of the tokens `ids`, shape (tokens,), of shape (tokens, words)."""
    return -nll_loss(log_probabilities, ids, reduction="none")


TAKE: Take = MiniLlm.take
