"""The parameters that several methods have, read strictly (spec/algorithms-merging.md)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from kolm_build.core.decimals import parse_decimal
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError

WEIGHT_LIMIT = 1000


def read_share(
    fields: Fields, name: str, default: str, *, least: str = "0", most: str = "1"
) -> Fraction:
    """The decimal number under `name`, from `least` to `most`, exactly."""
    return _within(fields.text(name, default=default), name, Fraction(least), Fraction(most))


def read_density(fields: Fields, default: str) -> Fraction:
    """The share of a task vector's elements that is kept: above 0, at most 1.

    Raises:
        InvalidRecordError: It is another number, or none.
    """
    density = read_share(fields, "density", default)
    if density == 0:
        raise InvalidRecordError(
            "nothing would be kept", where="density", expected="above 0, at most 1", actual="0"
        )
    return density


def read_scale(fields: Fields) -> float:
    """What the merged task vector is multiplied by."""
    return float(read_share(fields, "scale", "1", most=str(WEIGHT_LIMIT)))


def read_weights(fields: Fields, models: int, *, negative: bool = False) -> tuple[Fraction, ...]:
    """The weight of each of `models` models: one number for each, or one for all.

    Args:
        fields: Where ``weights`` stands, numbers with commas between.
        models: Number of models.
        negative: Whether a weight may be below 0; if not, their sum must be above 0.

    Raises:
        InvalidRecordError: Their number is another, or one is out of range.
    """
    texts = [text.strip() for text in fields.text("weights", default="1").split(",")]
    least = Fraction(-WEIGHT_LIMIT if negative else 0)
    found = [_within(text, "weights", least, Fraction(WEIGHT_LIMIT)) for text in texts]
    if len(found) == 1:
        found *= models
    if len(found) != models:
        raise InvalidRecordError(
            "not a weight for each model",
            where="weights",
            expected=f"{models} numbers for {models} models, or one for all",
            actual=f"{len(found)} numbers",
        )
    if not negative and sum(found) == 0:
        raise InvalidRecordError(
            "weights whose sum is 0", where="weights", expected="a sum above 0"
        )
    return tuple(found)


def check_models(models: int, *, least: int, most: int | None = None) -> None:
    """Refuse another number of models than a method takes.

    Raises:
        InvalidRecordError: There are fewer than `least`, or more than `most`.
    """
    if models < least or (most is not None and models > most):
        wanted = str(least) if most == least else f"{least} or more"
        raise InvalidRecordError(
            "not the number of models that this algorithm merges",
            where="inputs.models",
            expected=f"{wanted} models",
            actual=str(models),
        )


def equal_weights(models: int) -> Sequence[Fraction]:
    """A weight of 1 for each model."""
    return (Fraction(1),) * models


def _within(text: str, name: str, least: Fraction, most: Fraction) -> Fraction:
    try:
        number = Fraction(parse_decimal(text))
    except InvalidRecordError as error:
        raise error.under(name) from None
    if not least <= number <= most:
        raise InvalidRecordError(
            "out of range", where=name, expected=f"{least} to {most}", actual=repr(text)
        )
    return number
