"""A model for its users: it computes in the arithmetic it was judged in, whoever calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from kolm_build.runtime.asking import Answer, Prompt
from kolm_build.runtime.settings import GREEDY, GenerationSettings
from kolm_build.runtime.speaker import Speaker
from kolm_build.runtime.speaking import Stream

Arithmetic = Callable[[], AbstractContextManager[None]]
"""Makes a block in which a model is computed."""

TOGETHER = 8
"""Most answers that are said together, where that changes no bit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModel:
    """A model and its arithmetic.

    Attributes:
        model: What answers.
        arithmetic: Makes a block in which it is computed.
        together: Most answers that are said together.
    """

    model: Speaker
    arithmetic: Arithmetic
    together: int = TOGETHER

    def generate(
        self, prompt: str, *, system: str = "", settings: GenerationSettings = GREEDY
    ) -> Answer:
        """The answer to `prompt`; by default always the likeliest next token.

        Raises:
            InvalidDataError: Prompt and answer do not fit the model's window.
            InvalidRecordError: The settings ask for what cannot be.
        """
        with self.arithmetic():
            return self.model.generate(prompt, system=system, settings=settings)

    def stream(
        self, prompt: str, *, system: str = "", settings: GenerationSettings = GREEDY
    ) -> Stream:
        """The answer to `prompt` piece by piece, whole characters, as soon as each is certain.

        Between two pieces the process computes as the model does: take all of them, or let the
        stream go, before computing something else with torch.

        Raises:
            InvalidDataError: As `generate`, and all it raises.
        """
        said = self.model.stream(prompt, system=system, settings=settings)
        return said.within(self.arithmetic)

    def answers(
        self, prompts: Sequence[Prompt], settings: GenerationSettings = GREEDY
    ) -> list[Answer]:
        """The answers to `prompts`, in their order, each the one that its prompt gets alone.

        Raises:
            InvalidDataError: A prompt does not fit; its number, from 1, is named.
            InvalidRecordError: The settings ask for what cannot be.
        """
        with self.arithmetic():
            return self.model.answers(prompts, settings, together=self.together)
