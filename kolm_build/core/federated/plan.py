"""What a federation agrees on once, before its first round (spec/algorithms-federated.md)."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Self

from kolm_build.core.bounded import Params, choice, decimal, integer, params
from kolm_build.core.decimals import parse_decimal
from kolm_build.core.federated.fixed_point import bound_of
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError

VERSION = 1

AVERAGING = (
    *("fed-avg", "dp-fed-avg", "fed-prox", "fed-avgm", "fed-adam", "fed-yogi", "fed-adagrad"),
    *("scaffold", "fed-dyn", "ffa-lora"),
)
"""Methods whose server needs no more than a sum of updates, so that masks can hide the parts."""

FACTORING = ("flora", "flex-lora")
"""Methods whose server needs each site's A and B."""

METHODS = (*AVERAGING, *FACTORING)

_SCAFFOLD_NEEDS = {
    "optimiser": "sgd",
    "schedule": "constant",
    "max_grad_norm": "0",
    "weight_decay": "0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationPlan:
    """What a federation agrees on.

    Attributes:
        method: One of `METHODS`.
        weight: ``rows``: a site weighs as many as it has training rows; ``equal``: 1.
        masks: Whether updates are masked, so that the aggregator sees their sum alone.
        threshold: How many sites must stay for a round to be finished; more than half of them.
        clip: The greatest norm of an update, decimal text.
        fraction_bits: Binary places of an update.
        noise_multiplier: Standard deviation of the noise over `clip`; ``0`` for none.
        delta: The chance for which the privacy loss is told.
        server_rate: Rate of the server's optimiser.
        beta1: Its momentum.
        beta2: Decay of its second moment.
        tau: What is added to the root of the second moment.
        mu: Strength of the proximal term (prox), or of the regulariser (dyn).
        training: Parameters of a site's own training, sorted.
    """

    method: str
    weight: str
    masks: bool
    threshold: int
    clip: str
    fraction_bits: int
    noise_multiplier: str
    delta: str
    server_rate: str
    beta1: str
    beta2: str
    tau: str
    mu: str
    training: Params

    def __post_init__(self) -> None:
        self._check_noise()
        if self.method in FACTORING and self.masks:
            raise InvalidRecordError(
                f"the method {self.method} needs each site's matrices, and masks hide them",
                where="masks",
                expected="masks = false, or one of " + ", ".join(AVERAGING),
            )
        if self.bound < 1:
            raise InvalidRecordError("an update has to have room", where="clip", actual=self.clip)
        if self.method == "scaffold":
            self._check_scaffold()
        if self.method == "fed-dyn" and parse_decimal(self.mu) == 0:
            raise InvalidRecordError("the method fed-dyn divides by it", where="mu", actual=self.mu)

    def _check_noise(self) -> None:
        if not self.has_noise and self.method == "dp-fed-avg":
            raise InvalidRecordError("the method dp-fed-avg is about it", where="noise_multiplier")
        if not self.has_noise:
            return
        if self.method in FACTORING or self.method in ("scaffold", "fed-dyn"):
            raise InvalidRecordError(
                f"noise is not accounted for in the method {self.method}", where="noise_multiplier"
            )
        if self.weight != "equal":
            raise InvalidRecordError(
                "with noise no site may weigh more than another",
                where="weight",
                expected="equal",
                actual=self.weight,
            )
        if self.noise_variance < 100:
            raise InvalidRecordError(
                "too little noise to be told from rounding", where="noise_multiplier"
            )

    def _check_scaffold(self) -> None:
        given = dict(self.training)
        for name, want in _SCAFFOLD_NEEDS.items():
            if given.get(name) != want:
                raise InvalidRecordError(
                    "control variates need plain gradient steps of one length",
                    where=f"training.{name}",
                    expected=repr(want),
                    actual=repr(given.get(name)),
                )

    @property
    def has_noise(self) -> bool:
        """Whether sites add noise."""
        return parse_decimal(self.noise_multiplier) > 0

    @property
    def bound(self) -> int:
        """The greatest norm of an update, in units of 2^-fraction_bits."""
        return bound_of(parse_decimal(self.clip), self.fraction_bits)

    @property
    def noise_variance(self) -> int:
        """The variance of a site's noise: the noise of `threshold` sites is enough (FED-42)."""
        deviation = Fraction(parse_decimal(self.noise_multiplier)) * self.bound
        exact = deviation * deviation / self.threshold
        return -(-exact.numerator // exact.denominator)

    def to_value(self) -> dict[str, object]:
        """The record's plain value."""
        return {
            "v": VERSION,
            "method": self.method,
            "weight": self.weight,
            "masks": self.masks,
            "threshold": self.threshold,
            "clip": self.clip,
            "fraction_bits": self.fraction_bits,
            "noise_multiplier": self.noise_multiplier,
            "delta": self.delta,
            "server_rate": self.server_rate,
            "beta1": self.beta1,
            "beta2": self.beta2,
            "tau": self.tau,
            "mu": self.mu,
            "training": dict(self.training),
        }

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The plan that `value` describes; what a person leaves out has the value given here.

        Raises:
            InvalidRecordError: A key is unknown, or a value out of range or of another type.
        """
        fields = Fields(value)
        fields.version(VERSION)
        made = cls(
            method=choice(fields, "method", METHODS, default="fed-avg"),
            weight=choice(fields, "weight", ("rows", "equal"), default="rows"),
            masks=fields.flag("masks", default=True),
            threshold=integer(fields, "threshold", least=1, most=1 << 12, default=2),
            clip=decimal(fields, "clip", most="65536", default="16"),
            fraction_bits=integer(fields, "fraction_bits", least=8, most=40, default=24),
            noise_multiplier=decimal(fields, "noise_multiplier", most="1000", default="0"),
            delta=_delta(fields),
            server_rate=decimal(fields, "server_rate", most="1000", default="1"),
            beta1=decimal(fields, "beta1", most="1", default="0.9"),
            beta2=decimal(fields, "beta2", most="1", default="0.99"),
            tau=decimal(fields, "tau", most="1", default="0.001"),
            mu=decimal(fields, "mu", most="1000", default="0.01"),
            training=params(fields, "training"),
        )
        fields.done()
        return made


def _delta(fields: Fields) -> str:
    text = decimal(fields, "delta", most="1", default="0.00001")
    if not 0 < Decimal(text) < 1:
        raise InvalidRecordError("out of range", where="delta", expected="between 0 and 1")
    return text
