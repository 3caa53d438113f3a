"""The parameters of the step `quantise`, parsed strictly (spec/quantization.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Self, cast

from kolm_build.core.decimals import parse_decimal
from kolm_build.core.fields import Fields
from kolm_build.core.quantisation import GROUPS, Scheme, scheme_of
from kolm_build.core.quantise_choices import (
    EMBEDDINGS,
    METHODS,
    ORDERS,
    Embeddings,
    Method,
    Order,
    is_calibrated,
)
from kolm_build.errors import InvalidRecordError
from kolm_build.steps._bounds import choice, count

Params = Mapping[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantiseParams:
    """What a recipe may say of quantisation.

    Attributes:
        scheme: How linear layers are stored and computed.
        method: How codes are chosen: ``rtn`` is round to nearest.
        group: Columns that share a scale, for a scheme with groups; 0 for the rule.
        embeddings: What becomes of the embedding and of the head.
        keep: Patterns of the names of layers that stay as they are.
        calibration_rows: Most rows that are calibrated with; 0 where nothing is calibrated.
        calibration_length: Most tokens of a row; 0 likewise.
        damping: GPTQ's share of the mean of the Hessian's diagonal that is added to it.
        act_order: GPTQ's order of columns.
        grid: AWQ's number of strengths that are tried.
        strength: SmoothQuant's share of the difficulty that moves to the weights.
    """

    scheme: Scheme
    method: Method
    group: int
    embeddings: Embeddings
    keep: tuple[str, ...]
    calibration_rows: int
    calibration_length: int
    damping: Fraction
    act_order: Order
    grid: int
    strength: Fraction

    @property
    def is_calibrated(self) -> bool:
        """Whether rows are needed: by the method, or for the scales of activations."""
        return is_calibrated(self.scheme, self.method)

    @classmethod
    def parse(cls, params: Params) -> Self:
        """The parameters in `params`.

        Raises:
            InvalidRecordError: A key is unknown or has no meaning here, or a value is out of
                range or of another type.
        """
        fields = Fields(params)
        scheme = fields.parsed("scheme", scheme_of)
        method = cast(Method, choice(fields, "method", "rtn", METHODS))
        rows, length = _calibration(fields, scheme, method)
        parsed = cls(
            scheme=scheme,
            method=method,
            group=take_group(fields, scheme, "group"),
            embeddings=cast(Embeddings, choice(fields, "embeddings", "keep", EMBEDDINGS)),
            keep=_patterns(fields.text("keep", default="")),
            calibration_rows=rows,
            calibration_length=length,
            damping=_share(fields, "damping", "0.01") if method == "gptq" else Fraction(0),
            act_order=_order(fields) if method == "gptq" else "none",
            grid=count(fields, "grid", 20) if method == "awq" else 0,
            strength=_share(fields, "strength", "0.5") if method == "smoothquant" else Fraction(0),
        )
        fields.done()
        return parsed


def take_group(fields: Fields, scheme: Scheme, name: str) -> int:
    """The size of a group under `name`; 0, the rule, where nothing is said.

    Raises:
        InvalidRecordError: `scheme` has no groups, or none of this size.
    """
    group = fields.integer(name, default=0)
    allowed = (0, *GROUPS) if scheme.is_grouped else (0,)
    if group not in allowed:
        raise InvalidRecordError(
            "not a size of a group",
            where=name,
            expected=" or ".join(map(str, allowed)),
            actual=str(group),
        )
    return group


def _patterns(text: str) -> tuple[str, ...]:
    patterns = tuple(text.split("\n")) if text else ()
    if "" in patterns or len(set(patterns)) != len(patterns):
        raise InvalidRecordError(
            "patterns of layers must differ and not be empty", where="keep", actual=repr(text)[:80]
        )
    return patterns


def _calibration(fields: Fields, scheme: Scheme, method: Method) -> tuple[int, int]:
    """Most rows, and most tokens of a row."""
    if not is_calibrated(scheme, method):
        return 0, 0
    return count(fields, "calibration_rows", 128), count(fields, "calibration_length", 512)


def _share(fields: Fields, name: str, default: str) -> Fraction:
    share = Fraction(fields.parsed(name, parse_decimal) if fields.has(name) else default)
    if not 0 < share <= 1:
        raise InvalidRecordError(
            "out of range", where=name, expected="above 0, at most 1", actual=str(float(share))
        )
    return share


def _order(fields: Fields) -> Order:
    return cast(Order, choice(fields, "act_order", "static", ORDERS))
