"""A model that answers: prompts become tokens, tokens text (GEN-1 to GEN-18)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kolm_build.errors import InvalidDataError, InvalidRecordError
from kolm_build.runtime.asking import Answer, Prompt
from kolm_build.runtime.chat import Chat, messages_of
from kolm_build.runtime.forms import Begin, begin
from kolm_build.runtime.reading import Answering
from kolm_build.runtime.settings import GREEDY, Form, GenerationSettings
from kolm_build.runtime.speaking import Row, Stream, spoken
from kolm_build.runtime.window import check_length


class Join(Protocol):
    """Makes of prompts of several lengths one that is continued together."""

    def __call__(self, prefixes: Sequence[Any], *, room: int) -> Answering:
        """The prompts as one; `room` is the most tokens of a continuation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """A causal language model that answers.

    Attributes:
        network: What computes; it is called as transformers' networks are.
        chat: Its tokenizer and chat template.
        window: Most tokens of prompt and answer together.
        words: Number of logits.
        read: Reads a prompt, its token ids.
        join: Makes prompts that were read one.
        forms: What makes constraints, by form: made once.
    """

    network: Any
    chat: Chat
    window: int
    words: int
    read: Callable[[Sequence[int]], Any]
    join: Join
    forms: dict[Form, Begin] = field(default_factory=dict)

    def generate(
        self, prompt: str, *, system: str = "", settings: GenerationSettings = GREEDY
    ) -> Answer:
        """The answer to `prompt`; by default always the likeliest next token.

        Raises:
            InvalidDataError: Prompt and answer do not fit the model's window.
            InvalidRecordError: The settings ask for what cannot be, such as a form of answer that
                no tokens have.
        """
        (answer,) = self.answers([Prompt(text=prompt, system=system)], settings)
        return answer

    def stream(
        self, prompt: str, *, system: str = "", settings: GenerationSettings = GREEDY
    ) -> Stream:
        """The answer to `prompt` piece by piece, whole characters, as soon as each is certain.

        Raises:
            InvalidDataError: As `generate`, and all it raises; at once, before anything is read.
        """
        ids = self._ids(Prompt(text=prompt, system=system), settings)
        row = self._row(settings)
        return Stream(self._pieces(ids, row), row)

    def _pieces(self, ids: Sequence[int], row: Row) -> Iterator[str]:
        for _, piece in spoken(self.join([self.read(ids)], room=row.most_tokens), [row]):
            yield piece

    def answers(
        self,
        prompts: Sequence[Prompt],
        settings: GenerationSettings = GREEDY,
        *,
        together: int = 1,
    ) -> list[Answer]:
        """The answers to `prompts`, in their order.

        Args:
            prompts: What is asked.
            settings: How each answer is made; a prompt's answer is the one it gets alone.
            together: Most answers that are said together: more than one only where that changes
                no bit, under `portable-1`.

        Raises:
            InvalidDataError: A prompt does not fit; its number, from 1, is named.
            InvalidRecordError: The settings ask for what cannot be.
        """
        ids = [self._numbered(number, one, settings) for number, one in enumerate(prompts, 1)]
        found: list[Answer] = []
        for start in range(0, len(ids), together):
            found += self._said(ids[start : start + together], settings)
        return found

    def _said(
        self, prompts: Sequence[Sequence[int]], settings: GenerationSettings
    ) -> Iterator[Answer]:
        rows = [self._row(settings) for _ in prompts]
        prefixes = [self.read(ids) for ids in prompts]
        texts = [""] * len(rows)
        for number, piece in spoken(self.join(prefixes, room=settings.max_new_tokens), rows):
            texts[number] += piece
        for ids, row, text in zip(prompts, rows, texts, strict=True):
            yield Answer(text=text, prompt_tokens=len(ids), output_tokens=len(row.ids), end=row.end)

    def _numbered(self, number: int, prompt: Prompt, settings: GenerationSettings) -> Sequence[int]:
        try:
            return self._ids(prompt, settings)
        except InvalidDataError as error:
            raise error.under(f"prompt {number}") from None

    def _ids(self, prompt: Prompt, settings: GenerationSettings) -> Sequence[int]:
        ids = self.chat.prompt_ids(messages_of(prompt.text, system=prompt.system))
        if not ids:
            raise InvalidDataError(
                "the chat template makes no token of a prompt", actual=repr(prompt.text[:80])
            )
        if max(ids) >= self.words:
            raise InvalidRecordError(
                "the tokenizer has a token that the model does not have",
                where="tokenizer.json",
                expected=f"below {self.words}",
                actual=str(max(ids)),
            )
        check_length(len(ids) + settings.max_new_tokens, self.window)
        return ids

    def _row(self, settings: GenerationSettings) -> Row:
        form = settings.form
        if form is None:
            return Row(self.chat, settings, None)
        if form not in self.forms:
            self.forms[form] = begin(form, self.chat, self.words)
        return Row(self.chat, settings, self.forms[form])
