"""The text of an answer while it is said: whole characters, up to a stop string (GEN-10 to 13)."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from kolm_build.errors import BuildError, InvalidRecordError
from kolm_build.runtime.chat import tokenizing


class Pieces:
    """Tokens to text, one after the other, never a part of a character.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._given = ""

    def add(self, token: int) -> str:
        """The text that is certain after `token` and was not before; often empty.

        Raises:
            InvalidRecordError: The tokenizer fails on it.
        """
        with tokenizing():
            piece = self._stream.step(self._tokenizer, token) or ""
        self._given += piece
        return piece

    def rest(self, text: str) -> str:
        """What is left of `text`, all that the tokens spell: a character that was never finished.

        Raises:
            BuildError: What was given out is not how the text begins.
        """
        if not text.startswith(self._given):
            raise BuildError(
                "the tokenizer spells an answer in another way as a whole than token by token",
                expected=repr(text[:80]),
                actual=repr(self._given[:80]),
                advice="Take the answer at once, without streaming and stop strings.",
            )
        return text[len(self._given) :]


class StopStrings:
    """Gives text through up to the first stop string, which is left out.

    Args:
        strings: The stop strings; none may be empty.

    Raises:
        InvalidRecordError: One is empty.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        if not all(strings):
            raise InvalidRecordError("an empty stop string", where="stop")
        self._strings = tuple(strings)
        self._held = ""
        self._is_met = False

    @property
    def is_met(self) -> bool:
        """Whether the text holds a stop string."""
        return self._is_met

    def add(self, piece: str) -> str:
        """What may be given out after `piece`: nothing that may be the start of a stop string."""
        self._held += piece
        found = [at for one in self._strings if (at := self._held.find(one)) >= 0]
        if found:
            self._is_met = True
            return self._give(min(found))
        return self._give(len(self._held) - self._open())

    def rest(self) -> str:
        """What was held back."""
        return "" if self._is_met else self._give(len(self._held))

    def _give(self, length: int) -> str:
        given, self._held = self._held[:length], self._held[length:]
        return given

    def _open(self) -> int:
        """The length of the longest end of the text held that begins a stop string."""
        longest = max(map(len, self._strings), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(one.startswith(self._held[-length:]) for one in self._strings):
                return length
        return 0
