"""Templates: a recipe's text with columns in braces, such as ``Diagnosis: {text}``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from kolm_build.errors import InvalidRecordError

_PART = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """Text with places to fill.

    Attributes:
        parts: The text in order, each part with whether it is the name of a column.
    """

    parts: tuple[tuple[str, bool], ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """The template that `text` spells; ``{{`` and ``}}`` are braces.

        Raises:
            InvalidRecordError: A brace stands alone.
        """
        parts: list[tuple[str, bool]] = []
        at = 0
        for match in _PART.finditer(text):
            parts.append((text[at : match.start()], False))
            if match[1] is not None:
                parts.append((match[1], True))
            elif len(match[0]) == 2:
                parts.append((match[0][0], False))
            else:
                raise _lone_brace(text, match.start())
            at = match.end()
        parts.append((text[at:], False))
        return cls(parts=tuple(part for part in parts if part[0]))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it names, in the order of their first use."""
        return tuple(dict.fromkeys(text for text, is_column in self.parts if is_column))

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with each column replaced by its value."""
        return "".join(values[text] if is_column else text for text, is_column in self.parts)


def _lone_brace(text: str, at: int) -> InvalidRecordError:
    return InvalidRecordError(
        "a brace that names no column",
        expected="{column}, or {{ and }} for braces",
        actual=f"{text[max(0, at - 20) : at + 20]!r}, at character {at}",
    )
