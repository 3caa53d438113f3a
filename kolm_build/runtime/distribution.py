"""What tokens are drawn from (GEN-6, GEN-7): of answers, and of what a policy says."""

from __future__ import annotations

from dataclasses import dataclass

from kolm_build.errors import InvalidRecordError


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
