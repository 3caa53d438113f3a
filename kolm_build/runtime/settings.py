"""How an answer is made: what is drawn from, where it ends, what form it must have.

Values alone: what is asked is checked before anything heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kolm_build.runtime.distribution import Distribution

MAX_NEW_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Labels:
    """The form of an answer that is one of some labels.

    Attributes:
        word: What errors call it.
        labels: The labels.
    """

    word: ClassVar[str] = "labels"

    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Regex:
    """The form of an answer that a regular expression matches as a whole.

    Attributes:
        word: What errors call it.
        pattern: The expression, in the syntax of Rust's ``regex``.
    """

    word: ClassVar[str] = "regular expression"

    pattern: str


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """The form of an answer that is JSON by a schema.

    Attributes:
        word: What errors call it.
        text: The schema, JSON.
    """

    word: ClassVar[str] = "JSON Schema"

    text: str


Form = Labels | Regex | JsonSchema
"""What an answer must look like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """How an answer is made.

    Attributes:
        max_new_tokens: Most tokens of it, the one that ends it included.
        distribution: What its tokens are drawn from; None for the likeliest each time.
        seed: What is random about it follows from this number.
        stop: It ends before any of these texts.
        form: What it must look like; None for anything.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    distribution: Distribution | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    form: Form | None = None


GREEDY = GenerationSettings()
"""The likeliest token each time, until the model ends the answer."""
