"""The parameters of an evaluation, parsed strictly (spec/evaluation.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._bounds import choice, count

METRICS = ("exact", "label")

Params = Mapping[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateParams:
    """What a recipe may say of an evaluation.

    Attributes:
        max_new_tokens: Most tokens of an answer.
        batch_size: Most prompts that are read at once.
        labels: The answers there are, where it is a closed set; empty where not.
        verifier: Which outputs are acceptable, as `Verifier.parse` reads it.
        metric: ``exact`` (the text generated) or ``label`` (the likeliest label).
    """

    max_new_tokens: int
    batch_size: int
    labels: tuple[str, ...]
    verifier: str
    metric: str

    @classmethod
    def parse(cls, params: Params) -> Self:
        """The parameters in `params`; what is left out has the value given here.

        Raises:
            InvalidRecordError: A key is unknown, or a value out of range or of another type.
        """
        fields = Fields(params)
        parsed = cls(
            max_new_tokens=count(fields, "max_new_tokens", 64),
            batch_size=count(fields, "batch_size", 8),
            labels=_labels(fields),
            verifier=fields.text("verifier", default="none"),
            metric=choice(fields, "metric", "exact", METRICS),
        )
        fields.done()
        if parsed.metric == "label" and not parsed.labels:
            raise InvalidRecordError("the metric 'label' needs labels", where="labels")
        return parsed


def _labels(fields: Fields) -> tuple[str, ...]:
    text = fields.text("labels", default="")
    labels = tuple(text.split("\n")) if text else ()
    if len(set(labels)) != len(labels) or any(
        label != label.strip() or not label for label in labels
    ):
        raise InvalidRecordError(
            "labels must differ and have no space around them", where="labels", actual=repr(text)
        )
    return labels


def check_none(params: Params) -> None:
    """Refuse any parameter: the step has none."""
    Fields(params).done()
