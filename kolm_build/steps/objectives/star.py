"""``star``: learning the reasoning that leads to right answers (arXiv:2203.14465, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from kolm_build.core.fields import Fields
from kolm_build.steps._bounds import choice, count
from kolm_build.steps._rewards import Judge, RewardParams, judged
from kolm_build.steps._rollouts import Completion, PromptExample, Sampling
from kolm_build.steps._sequences import Continuation
from kolm_build.steps._stage import Take, stage_main
from kolm_build.steps.objectives._kept import Choice, KeptObjective


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return stage_main(argv, TAKE)


HINT = "{question}\n\nHint: the answer is {reference}."
"""The last turn of a prompt that gives the answer away."""

YES, NO = "yes", "no"


class Star(KeptObjective):
    """Self-taught reasoning: an answer is learned if it is right, that is, its reward is over 0.

    Where none is, the prompt is asked again with its reference as a hint, and what is right then
    is learned as the answer to the prompt without it. Answers are those of the model as the stage
    begins, so that a stage is one outer loop of the paper's.

    Args:
        sampling: How answers are drawn.
        reward: What they are worth.
        iterations: Optimiser steps that are made with the same answers.
        rationalise: Whether hints are given.
    """

    figures = ("right", "kept")  # rewards of the model as it was: they do not rise
    needs_reference = True

    def __init__(
        self, sampling: Sampling, reward: RewardParams, iterations: int, *, rationalise: bool
    ) -> None:
        super().__init__(sampling, reward, iterations)
        self._rationalise = rationalise

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The objective that `fields` describe."""
        return cls(
            Sampling.take(fields, generations=1, least=1),
            RewardParams.take(fields),
            count(fields, "iterations", 1),
            rationalise=choice(fields, "rationalise", YES, (YES, NO)) == YES,
        )

    def choose(
        self, network: Any, examples: Sequence[PromptExample], seeds: Sequence[int], judge: Judge
    ) -> list[Choice]:
        """The first right answer of each row, with a hint where there is none without."""
        prompts = [one.ids for one in examples]
        with self.given.change.reference(network):
            said = self.sampler.draw(network, prompts, seeds)
            rewards = [judged(judge, *one) for one in zip(examples, said, strict=True)]
            failed = [at for at, worth in enumerate(rewards) if max(worth) <= 0.0]
            again = self._hinted(network, examples, failed, seeds)
        self.note([*said, *again.values()])
        found = []
        for at, example in enumerate(examples):
            kept = first_right(said[at], rewards[at])
            if kept is None and at in again:
                kept = first_right(again[at], judged(judge, example, again[at]))
            sequence = None if kept is None else after(example.ids, kept)
            found.append(Choice(sequence=sequence, rewards=rewards[at]))
        return found

    def _hinted(
        self,
        network: Any,
        examples: Sequence[PromptExample],
        failed: Sequence[int],
        seeds: Sequence[int],
    ) -> dict[int, list[Completion]]:
        """Answers to the prompts `failed` with hints, by their index."""
        hinted = [at for at in failed if self._rationalise and examples[at].row.reference.strip()]
        prompts = [self._prompt(examples[at]) for at in hinted]
        said = self.sampler.draw(
            network, prompts, [seeds[at] for at in hinted], first=self.sampling.generations
        )
        return dict(zip(hinted, said, strict=True))

    def _prompt(self, example: PromptExample) -> tuple[int, ...]:
        messages = with_hint(example.row.messages, example.row.reference.strip())
        ids = tuple(self.given.model.chat.prompt_ids(messages))
        self.given.tokens.check(
            len(ids) + self.sampling.max_new_tokens, f"{example.where}, with its hint"
        )
        return ids


def with_hint(messages: Sequence[Mapping[str, str]], reference: str) -> list[Mapping[str, str]]:
    """`messages` with the answer given away in the last turn."""
    *before, last = messages
    content = HINT.format(question=last["content"], reference=reference)
    return [*before, {"role": last["role"], "content": content}]


def first_right(said: Sequence[Completion], rewards: Sequence[float]) -> Completion | None:
    """The first answer whose reward is over 0; None without one."""
    right = (one for one, reward in zip(said, rewards, strict=True) if reward > 0.0)
    return next(right, None)


def after(prompt: tuple[int, ...], completion: Completion) -> Continuation:
    """What was said, after `prompt`."""
    said = completion.sequence.ids[completion.sequence.start :]
    return Continuation(ids=(*prompt, *said), start=len(prompt))


TAKE: Take = Star.take
