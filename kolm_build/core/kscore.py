"""The K-score: one number for a model as shipped, and its five terms (spec/kscore.md).

    K = 0.40 A + 0.15 S + 0.15 L + 0.15 C + 0.15 V

A is accuracy on the frozen holdout, V the share of outputs that the verifier accepts, S, L and C
size, latency and cost against the recipe's budgets. Latency and cost are modelled from counted
operations and bytes on a device profile, since a wall clock has no place in a hash. Everything is
computed from integers, so whoever has the evidence gets the same digits. Needs the standard
library alone.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Self

from kolm_build.core.decimals import CONTEXT, four_places, parse_decimal, render_decimal
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError

FORMAT = "kscore/1"
TERMS = ("accuracy", "size", "latency", "cost", "coverage")
WEIGHTS = {
    "accuracy": Decimal("0.40"),
    "size": Decimal("0.15"),
    "latency": Decimal("0.15"),
    "cost": Decimal("0.15"),
    "coverage": Decimal("0.15"),
}

_MICROSECONDS_PER_S = 10**6
_MICROSECONDS_PER_HOUR = 3600 * 10**6
_REQUESTS = 1000
_VANISHED = 64
"""Budgets over at which a term is 0.0000 without computing it: 2^-64 is far below 4 places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The counted facts that a K-score follows from; all integers.

    Attributes:
        rows: Rows of the holdout.
        correct: Rows answered right, by the recipe's metric.
        verified: Rows whose output the verifier accepts.
        base_correct: Rows the untuned base answers right; None where it was not evaluated.
        weight_bytes: Size of the model's weights as shipped.
        flops_per_request: Floating-point operations of a mean request.
        bytes_per_request: Bytes that a mean request reads and writes.
        size_budget_bytes: The recipe's budget for `weight_bytes`.
        latency_budget_us: Its budget for one request.
        cost_budget_microusd: Its budget for 1,000 requests.
        device_flops_per_s: Of the device profile.
        device_bytes_per_s: Of the device profile.
        device_microusd_per_hour: Of the device profile.
    """

    rows: int
    correct: int
    verified: int
    base_correct: int | None = None
    weight_bytes: int
    flops_per_request: int
    bytes_per_request: int
    size_budget_bytes: int
    latency_budget_us: int
    cost_budget_microusd: int
    device_flops_per_s: int
    device_bytes_per_s: int
    device_microusd_per_hour: int

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise _out_of_range(name, "1 or more", getattr(self, name))
        for name in ("correct", "verified", "base_correct"):
            count = getattr(self, name)
            if count is not None and not 0 <= count <= self.rows:
                raise _out_of_range(name, f"0 to {self.rows} rows", count)
        for name in _AT_LEAST_ZERO:
            if getattr(self, name) < 0:
                raise _out_of_range(name, "0 or more", getattr(self, name))

    @property
    def latency_us(self) -> int:
        """Modelled time of a request: what compute or memory takes, the longer, rounded up."""
        compute = _ceil_div(self.flops_per_request * _MICROSECONDS_PER_S, self.device_flops_per_s)
        memory = _ceil_div(self.bytes_per_request * _MICROSECONDS_PER_S, self.device_bytes_per_s)
        return max(compute, memory)

    @property
    def cost_microusd(self) -> int:
        """Modelled cost of 1,000 requests one after the other, rounded up."""
        used = self.latency_us * _REQUESTS * self.device_microusd_per_hour
        return _ceil_div(used, _MICROSECONDS_PER_HOUR)

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        source = Fields(value)
        made = cls(
            base_correct=source.nullable("base_correct", int),
            **{
                field.name: source.integer(field.name)
                for field in fields(cls)
                if field.name != "base_correct"
            },
        )
        source.done()
        return made


_AT_LEAST_ONE = (
    "rows",
    "size_budget_bytes",
    "latency_budget_us",
    "cost_budget_microusd",
    "device_flops_per_s",
    "device_bytes_per_s",
)
_AT_LEAST_ZERO = (
    "weight_bytes",
    "flops_per_request",
    "bytes_per_request",
    "device_microusd_per_hour",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KScore:
    """The score with its terms, each in [0, 1] with four decimal places.

    Attributes:
        evidence: What it was computed from.
        accuracy: A, `correct` over `rows`.
        size: S.
        latency: L.
        cost: C.
        coverage: V, `verified` over `rows`.
        k: The weighted sum of the five terms as they stand here, rounded half to even.
        base_accuracy: The untuned base's accuracy, for comparison; not a term.
    """

    evidence: Evidence
    accuracy: Decimal
    size: Decimal
    latency: Decimal
    cost: Decimal
    coverage: Decimal
    k: Decimal
    base_accuracy: Decimal | None

    def to_value(self) -> dict[str, object]:
        """The plain value; numbers that are not whole are text."""
        return {
            "format": FORMAT,
            "k": str(self.k),
            "terms": {name: str(getattr(self, name)) for name in TERMS},
            "base_accuracy": None if self.base_accuracy is None else str(self.base_accuracy),
            "latency_us": self.evidence.latency_us,
            "cost_microusd": self.evidence.cost_microusd,
            "evidence": self.evidence.to_value(),
        }

    @classmethod
    def from_value(cls, value: object) -> KScore:
        """The score in `value`, computed again from its evidence.

        Raises:
            InvalidRecordError: A figure is not what the evidence gives.
        """
        found = Fields(value)
        made = score(found.record("evidence", Evidence.from_value))
        for name, want in made.to_value().items():
            if name != "evidence":
                _check_figure(name, want, found)
        found.done()
        return made


def score(evidence: Evidence) -> KScore:
    """The K-score that follows from `evidence`."""
    terms = {
        "accuracy": _share(evidence.correct, evidence.rows),
        "size": _against(evidence.weight_bytes, evidence.size_budget_bytes),
        "latency": _against(evidence.latency_us, evidence.latency_budget_us),
        "cost": _against(evidence.cost_microusd, evidence.cost_budget_microusd),
        "coverage": _share(evidence.verified, evidence.rows),
    }
    base = evidence.base_correct
    return KScore(
        evidence=evidence,
        **terms,
        k=four_places(sum((WEIGHTS[name] * terms[name] for name in TERMS), Decimal(0))),
        base_accuracy=None if base is None else _share(base, evidence.rows),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What the gate asks for; each in [0, 1].

    Attributes:
        k: The least K.
        accuracy: The least A.
        coverage: The least V.
    """

    k: Decimal
    accuracy: Decimal
    coverage: Decimal

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """The thresholds of a recipe's or a derivation's fields; a floor they do not name is 0.

        Raises:
            InvalidRecordError: One is not a decimal number from 0 to 1.
        """
        return cls.parse(
            k=fields.text("k_min", default="0.85"),
            accuracy=fields.text("accuracy_min", default="0"),
            coverage=fields.text("coverage_min", default="0"),
        )

    @classmethod
    def parse(cls, *, k: str, accuracy: str, coverage: str) -> Self:
        """The thresholds that the three texts spell.

        Raises:
            InvalidRecordError: One is not a decimal number from 0 to 1.
        """
        return cls(
            k=_fraction("k_min", k),
            accuracy=_fraction("accuracy_min", accuracy),
            coverage=_fraction("coverage_min", coverage),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """A term below what the gate asks for.

    Attributes:
        term: ``k``, ``accuracy`` or ``coverage``.
        value: What it is.
        minimum: What it had to be.
    """

    term: str
    value: Decimal
    minimum: Decimal

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {
            "term": self.term,
            "value": str(self.value),
            "minimum": render_decimal(self.minimum),
            "short_by": render_decimal(self.minimum - self.value),
        }

    def __str__(self) -> str:
        short_by = render_decimal(self.minimum - self.value)
        return f"{self.term} {self.value} is {short_by} below {render_decimal(self.minimum)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the gate says of a score.

    Attributes:
        thresholds: What it asked for.
        shortfalls: The terms that are too low, in the order k, accuracy, coverage.
    """

    thresholds: Thresholds
    shortfalls: tuple[Shortfall, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing is too low."""
        return not self.shortfalls

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {
            "format": "gate/1",
            "passed": self.passed,
            "k_min": render_decimal(self.thresholds.k),
            "accuracy_min": render_decimal(self.thresholds.accuracy),
            "coverage_min": render_decimal(self.thresholds.coverage),
            "shortfalls": [shortfall.to_value() for shortfall in self.shortfalls],
        }


def gate(scored: KScore, thresholds: Thresholds) -> Verdict:
    """The gate's verdict on `scored`; figures are compared as they are shown."""
    pairs = (
        ("k", scored.k, thresholds.k),
        ("accuracy", scored.accuracy, thresholds.accuracy),
        ("coverage", scored.coverage, thresholds.coverage),
    )
    return Verdict(
        thresholds=thresholds,
        shortfalls=tuple(
            Shortfall(term=term, value=value, minimum=minimum)
            for term, value, minimum in pairs
            if value < minimum
        ),
    )


def _share(part: int, whole: int) -> Decimal:
    return four_places(CONTEXT.divide(Decimal(part), Decimal(whole)))


def _against(used: int, budget: int) -> Decimal:
    """1 within the budget, else halved for each whole budget over it."""
    if used <= budget:
        return four_places(Decimal(1))
    if used - budget >= _VANISHED * budget:
        return four_places(Decimal(0))
    over = CONTEXT.divide(Decimal(used - budget), Decimal(budget))
    halvings = CONTEXT.multiply(over, CONTEXT.ln(Decimal(2)))
    return four_places(CONTEXT.exp(-halvings))


def _ceil_div(number: int, by: int) -> int:
    return -(-number // by)


def _fraction(name: str, text: str) -> Decimal:
    try:
        number = parse_decimal(text)
    except InvalidRecordError as error:
        raise error.under(name) from None
    if not 0 <= number <= 1:
        raise _out_of_range(name, "0 to 1", text)
    return number


def _check_figure(name: str, want: object, found: Fields) -> None:
    """Refuse the figure `name` of a score that is not what its evidence gives."""
    actual = found.take(name, type(want))
    if actual != want:
        raise InvalidRecordError(
            "a figure that does not follow from its evidence",
            where=name,
            expected=str(want),
            actual=str(actual)[:80],
        )


def _out_of_range(name: str, expected: str, actual: object) -> InvalidRecordError:
    return InvalidRecordError("out of range", where=name, expected=expected, actual=str(actual))
