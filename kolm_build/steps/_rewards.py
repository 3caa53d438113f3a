"""Rewards: what a completion is worth (RL-10 to RL-19)."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Self

import torch

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidDataError, InvalidRecordError
from kolm_build.runtime.loading import Model, load
from kolm_build.steps._bounds import choice, count
from kolm_build.steps._files import input_folder, only_file
from kolm_build.steps._given import Given
from kolm_build.steps._machine_math import uses
from kolm_build.steps._reward_file import RewardFile
from kolm_build.steps._reward_head import RewardHead, outcome
from kolm_build.steps._rollouts import Completion, PromptExample

FILE, MODEL = "file", "model"
REWARD, REWARD_MODEL = "reward", "reward_model"
"""The inputs: a Python file, a reward model."""

Judge = Callable[[PromptExample, str, str], float]
"""The reward of the text said to a prompt; the last argument is row and completion."""


class Reward(ABC):
    """Judges completions."""

    def check(self, examples: Sequence[PromptExample]) -> None:
        """Refuse rows that it cannot judge; by itself it judges any."""
        del examples

    @abstractmethod
    def judging(self) -> AbstractContextManager[Judge]:
        """A judge for one optimiser step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardParams:
    """Where rewards are from.

    Attributes:
        reward_by: ``file``, ``model``, ``exact``, ``label`` or ``regex``.
        reward_timeout_seconds: Most seconds that a call of a file's function may take.
    """

    reward_by: str
    reward_timeout_seconds: int

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """The parameters in `fields`."""
        return cls(
            reward_by=choice(fields, "reward_by", FILE, (FILE, MODEL, *RULES)),
            reward_timeout_seconds=count(fields, "reward_timeout_seconds", 30),
        )

    def reward(self, given: Given, examples: Sequence[PromptExample]) -> Reward:
        """The reward that they describe; the rows are checked.

        Raises:
            InvalidRecordError: The input it needs is missing, or one is there that it does not use.
            InvalidDataError: A row cannot be judged by it.
        """
        self._check_inputs(given)
        made: Reward
        if self.reward_by == FILE:
            made = FileReward(given, self.reward_timeout_seconds)
        elif self.reward_by == MODEL:
            made = ModelReward(input_folder(given.request, REWARD_MODEL))
        else:
            made = RuleReward(self.reward_by)
        made.check(examples)
        return made

    def _check_inputs(self, given: Given) -> None:
        used = {FILE: REWARD, MODEL: REWARD_MODEL}.get(self.reward_by)
        for role in (REWARD, REWARD_MODEL):
            if role in given.request.inputs and role != used:
                raise InvalidRecordError(
                    "an input that nothing uses",
                    where=role,
                    expected=f"reward_by that uses {role}",
                    actual=f"reward_by = {self.reward_by!r}",
                )


class FileReward(Reward):
    """The recipe's own function, in a new process for each optimiser step."""

    def __init__(self, given: Given, timeout_seconds: int) -> None:
        folder = input_folder(given.request, REWARD)
        self._path = only_file(folder, role=REWARD, suffixes=(".py",))
        self._timeout = timeout_seconds
        for use in _machine_math(self._path):
            given.events.log(use)

    @contextmanager
    def judging(self) -> Iterator[Judge]:
        """The function, as long as its process lives."""
        with RewardFile(self._path, self._timeout) as file:
            yield lambda example, text, where: file.call(
                example.row.messages[-1]["content"] if example.row.messages else "",
                text,
                example.row.reference,
                example.row.fields,
                where,
            )


class ModelReward(Reward):
    """A reward model: the number that its head gives the whole conversation."""

    def __init__(self, folder: Path) -> None:
        self._head = RewardHead.read(folder)
        self._model: Model = load(folder, dtype=torch.float32)

    @contextmanager
    def judging(self) -> Iterator[Judge]:
        """The model."""
        with torch.no_grad():
            yield self._judge

    def _judge(self, example: PromptExample, text: str, where: str) -> float:
        try:
            return outcome(self._model, self._head, example.row.messages, text)
        except InvalidRecordError as error:
            raise error.under(where) from None


class RuleReward(Reward):
    """1 for a completion that agrees with its row's `reference`, else 0."""

    def __init__(self, rule: str) -> None:
        self._rule = RULES[rule]
        self._references: tuple[str, ...] = ()

    def check(self, examples: Sequence[PromptExample]) -> None:
        """Every row needs a reference, and a pattern must be one."""
        references = sorted({one.row.reference.strip() for one in examples})
        self._references = tuple(references)
        for one in examples:
            if not one.row.reference.strip():
                raise InvalidDataError(
                    "a prompt without a reference has no such reward",
                    file="train.jsonl",
                    where=one.where,
                    expected="a reference",
                )
            try:
                self._rule("", one.row.reference.strip(), self._references)
            except re.error as error:
                raise InvalidDataError(
                    "a reference is not a regular expression",
                    file="train.jsonl",
                    where=one.where,
                    actual=str(error),
                ) from None

    @contextmanager
    def judging(self) -> Iterator[Judge]:
        """The rule."""
        yield lambda example, text, _where: float(
            self._rule(text.strip(), example.row.reference.strip(), self._references)
        )


def exact(said: str, reference: str, references: Sequence[str]) -> bool:
    """Whether it says the reference and nothing else."""
    del references
    return said == reference


def label(said: str, reference: str, references: Sequence[str]) -> bool:
    """Whether of all references of the set it names its own and no other, in any case."""
    return {one for one in references if _names(said, one)} == {reference}


def regex(said: str, reference: str, references: Sequence[str]) -> bool:
    """Whether the reference, a regular expression, matches the whole of it."""
    del references
    return re.fullmatch(reference, said) is not None


Rule = Callable[[str, str, Sequence[str]], bool]
RULES: Mapping[str, Rule] = MappingProxyType({"exact": exact, "label": label, "regex": regex})


def _names(said: str, one: str) -> bool:
    """Whether the words `one` stand in `said`."""
    return re.search(rf"(?<!\w){re.escape(one.casefold())}(?!\w)", said.casefold()) is not None


def judged(
    judge: Judge, example: PromptExample, completions: Sequence[Completion]
) -> tuple[float, ...]:
    """The rewards of a prompt's completions."""
    return tuple(
        judge(example, one.text, f"{example.where}, completion {number}")
        for number, one in enumerate(completions, 1)
    )


def _machine_math(path: Path) -> Iterator[str]:
    """Which functions the file names whose last bit is the machine's (STEP-29)."""
    try:
        found = uses(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):  # loading it says so
        return
    for use in found:
        yield (
            f"{path.name}:{use.line}: {use.name} is computed by the machine's C library; "
            "its last bit may differ on another machine"
        )
