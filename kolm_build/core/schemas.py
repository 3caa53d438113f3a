"""The schemas of data: what a row holds, and which keys of a recipe say it (spec/dataset.md).

The recipe and the `dataset` step read the same table, so what one accepts the other knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

ANSWERS = "answers"
NO_ROWS = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The keys of one schema.

    Attributes:
        templates: Templates that name a column, and must be given.
        optional: Other templates, with the text that stands for each where it is not given.
        columns: Names of columns that hold a list, which must be given.
        more: Whether further columns may be named, as `fields`.
        turns: Whether a row is a conversation, and so may have a system message.
    """

    templates: tuple[str, ...]
    optional: tuple[tuple[str, str], ...] = ()
    columns: tuple[str, ...] = ()
    more: bool = False
    turns: bool = True


SCHEMAS: Mapping[str, Schema] = MappingProxyType(
    {
        ANSWERS: Schema(templates=("prompt", "answer")),
        "texts": Schema(templates=("text",), turns=False),
        "pairs": Schema(templates=("prompt", "chosen", "rejected"), optional=(("margin", ""),)),
        "feedback": Schema(templates=("prompt", "answer", "good"), optional=(("weight", "1"),)),
        "prompts": Schema(templates=("prompt",), optional=(("reference", ""),), more=True),
        "steps": Schema(templates=("prompt",), columns=("steps", "labels")),
        "rationales": Schema(templates=("prompt", "answer", "rationale")),
    }
)
