"""What a model is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said.

    Attributes:
        text: The answer, without the token or text that ended it.
        prompt_tokens: Number of tokens it read.
        output_tokens: Number of tokens it said, the one that ended the answer included.
        end: Why it ended: ``end``, ``stop`` or ``length``.
    """

    text: str
    prompt_tokens: int
    output_tokens: int
    end: str = "end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a model is asked.

    Attributes:
        text: The user's message.
        system: The system message; empty for none.
    """

    text: str
    system: str = ""
