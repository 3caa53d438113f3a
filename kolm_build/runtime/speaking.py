"""Answers, said token by token: chosen, spelled and ended (GEN-1 to GEN-13).

A row is one answer on its way. It sees its own logits and nothing of its neighbours, so that where
rows are computed alone (`portable-1`) an answer is the same in every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np

from kolm_build.runtime.chat import Chat
from kolm_build.runtime.draws import draw_number, drawn_from
from kolm_build.runtime.forms import Begin, Constraint
from kolm_build.runtime.reading import Answering, Floats
from kolm_build.runtime.settings import GenerationSettings
from kolm_build.runtime.stopping import Pieces, StopStrings

Chances = Callable[[Floats, float], Floats]
"""Makes probabilities of one row's logits over a temperature."""

END, STOP, LENGTH = "end", "stop", "length"
"""Why an answer ended: the model said so, a stop string was met, `max_new_tokens` were said."""


class Row:
    """An answer on its way.

    Args:
        chat: The model's tokenizer and end tokens.
        settings: How the answer is made.
        begin: Makes the constraint of its form; None for any form.
    """

    def __init__(self, chat: Chat, settings: GenerationSettings, begin: Begin | None) -> None:
        self._chat = chat
        self._settings = settings
        self._constraint: Constraint | None = begin() if begin else None
        self._pieces = Pieces(chat.tokenizer)
        self._stops = StopStrings(settings.stop)
        self.ids: list[int] = []
        self.end = ""
        """Why it ended; empty while it goes on."""

    @property
    def most_tokens(self) -> int:
        """Most tokens that it may have."""
        return self._settings.max_new_tokens

    def choose(self, logits: Floats, chances: Chances) -> int:
        """The next token.

        Args:
            logits: What is expected, shape (vocabulary,), float32.
            chances: Makes probabilities of them.
        """
        if self._constraint is not None:
            logits = np.where(self._constraint.allowed(), logits, np.float32(-np.inf))
        distribution, place = self._settings.distribution, len(self.ids)
        if distribution is None:
            return int(logits.argmax())
        number = draw_number(self._settings.seed, 0, place)
        likely = chances(logits, distribution.temperature)
        (token,) = drawn_from(likely[None], distribution, [number])
        return token

    def take(self, token: int) -> str:
        """The answer goes on with `token`; the text that is certain now and was not before."""
        self.ids.append(token)
        if self._constraint is not None:
            self._constraint.take(token)
        text = self._stops.add(self._pieces.add(token))
        if self._stops.is_met:
            self.end = STOP
        elif token in self._chat.stop_ids:
            self.end = END
        elif len(self.ids) == self._settings.max_new_tokens:
            self.end = LENGTH
        return text + self._rest() if self.end else text

    def _rest(self) -> str:
        if self.end == STOP:
            return ""
        last = self._stops.add(self._pieces.rest(self._chat.text(self.ids)))
        if self._stops.is_met:
            self.end = STOP
        return last + self._stops.rest()


class Stream(Iterator[str]):
    """An answer as it is said: pieces of its text.

    Args:
        pieces: The pieces; empty ones are left out.
        row: The answer.
    """

    def __init__(self, pieces: Iterator[str], row: Row) -> None:
        self._pieces = pieces
        self._row = row

    def __next__(self) -> str:
        """The next piece of text."""
        return next(piece for piece in self._pieces if piece)

    def within(self, block: Callable[[], AbstractContextManager[None]]) -> Stream:
        """This stream, all of it said in one such block."""

        def pieces() -> Iterator[str]:
            with block():
                yield from self._pieces

        return Stream(pieces(), self._row)

    @property
    def end(self) -> str:
        """Why the answer ended; empty while it goes on."""
        return self._row.end


def spoken(reader: Answering, rows: Sequence[Row]) -> Iterator[tuple[int, str]]:
    """Say the answers of `rows` to the prompts that `reader` has read; it is used up.

    Yields:
        The number of a row and more of its text, in the order of the tokens; rows in order.
    """
    logits = reader.logits
    while True:
        chosen = [0] * len(rows)
        for number, row in enumerate(rows):
            if not row.end:
                token = row.choose(logits[number], reader.chances)
                chosen[number] = token
                yield number, row.take(token)
        if all(row.end for row in rows):
            return
        logits = reader.read(chosen)
