"""How an answer is made: what is drawn from, where it ends, what form it must have.

Values alone: what is asked is checked before anything heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass

from kolm_build.errors import InvalidRecordError

MAX_NEW_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """What tokens are drawn from, given logits; the filters apply in the order of their fields.

    Attributes:
        temperature: Logits are divided by it; 0.01 to 100.
        top_k: So many of the likeliest tokens are drawn from; 0 for all.
        top_p: The likeliest tokens that together have this probability are drawn from; 0.01 to 1.
        min_p: Tokens of at least this share of the likeliest one's probability are drawn from;
            0 to 1.

    Raises:
        InvalidRecordError: A number is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("temperature", self.temperature, 0.01, 100.0),
            ("top_k", self.top_k, 0, 1 << 31),
            ("top_p", self.top_p, 0.01, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
        ):
            if not least <= value <= most:
                raise InvalidRecordError(
                    "out of range",
                    where=name,
                    expected=f"{least:g} to {most:g}",
                    actual=f"{value:g}",
                )


@dataclass(frozen=True, slots=True)
class Labels:
    """The form of an answer that is one of some labels.

    Attributes:
        labels: The labels.
    """

    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Regex:
    """The form of an answer that a regular expression matches as a whole.

    Attributes:
        pattern: The expression, in the syntax of Rust's ``regex``.
    """

    pattern: str


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """The form of an answer that is JSON by a schema.

    Attributes:
        text: The schema, JSON.
    """

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
