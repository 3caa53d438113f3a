"""What rounds with noise reveal at most: Rényi differential privacy, in decimal arithmetic.

I. Mironov, Rényi differential privacy, arXiv:1702.07476; I. Mironov, K. Talwar, L. Zhang, Rényi
differential privacy of the sampled Gaussian mechanism, arXiv:1908.10530, section 3.3, for whole
orders, where the sum is finite and exact. 60 digits are kept and epsilon is rounded up, so the
figure is the same everywhere and never too small (FED-50 to FED-52).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from math import comb

from kolm_build.errors import InvalidRecordError

ORDERS = (*range(2, 65), 80, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024)
"""The orders that are tried."""

_CONTEXT = Context(prec=60)
_PLACES = Decimal("0.0001")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """A privacy loss.

    Attributes:
        epsilon: Rounded up at the fourth place.
        delta: The chance that it is exceeded.
        order: The order that gave the least epsilon.
    """

    epsilon: Decimal
    delta: Decimal
    order: int


def rdp(*, order: int, noise_multiplier: Decimal, sampling_rate: Decimal = Decimal(1)) -> Decimal:
    """The Rényi divergence of one round at `order` (FED-50).

    Args:
        order: A whole number above 1.
        noise_multiplier: The noise's standard deviation over the greatest norm of an update.
        sampling_rate: The chance that a site takes part, drawn for each site alone.

    Raises:
        InvalidRecordError: An argument is out of range.
    """
    if order < 2 or noise_multiplier <= 0 or not 0 < sampling_rate <= 1:
        raise InvalidRecordError("no such mechanism", where="rdp")
    context = _CONTEXT
    double = context.multiply(Decimal(2), context.multiply(noise_multiplier, noise_multiplier))
    if sampling_rate == 1:
        return context.divide(Decimal(order), double)
    rest = context.subtract(Decimal(1), sampling_rate)
    total = Decimal(0)
    for k in range(order + 1):
        term = context.multiply(
            context.multiply(Decimal(comb(order, k)), _power(rest, order - k)),
            context.multiply(
                _power(sampling_rate, k), context.exp(context.divide(Decimal(k * k - k), double))
            ),
        )
        total = context.add(total, term)
    return context.divide(context.ln(total), Decimal(order - 1))


def _power(base: Decimal, exponent: int) -> Decimal:
    return Decimal(1) if exponent == 0 else _CONTEXT.power(base, exponent)


def spent(
    *,
    rounds: int,
    noise_multiplier: Decimal,
    delta: Decimal,
    sampling_rate: Decimal = Decimal(1),
) -> Spent:
    """The privacy loss of `rounds` rounds, the least over `ORDERS` (FED-51, FED-52).

    From divergence to (epsilon, delta) by proposition 12 of Canonne, Kamath and Steinke,
    arXiv:2004.00010, as Opacus and Google's dp-accounting do.

    Raises:
        InvalidRecordError: An argument is out of range.
    """
    if rounds < 0 or not 0 < delta < 1:
        raise InvalidRecordError("rounds or delta out of range", where="delta", actual=str(delta))
    if rounds == 0:
        return Spent(epsilon=Decimal(0), delta=delta, order=ORDERS[0])
    found = [
        (_epsilon(_after(rounds, order, noise_multiplier, sampling_rate), order, delta), order)
        for order in ORDERS
    ]
    epsilon, order = min(found)
    return Spent(epsilon=_rounded_up(epsilon), delta=delta, order=order)


def _after(rounds: int, order: int, noise_multiplier: Decimal, sampling_rate: Decimal) -> Decimal:
    """The divergence of all rounds: that of one, added up."""
    one = rdp(order=order, noise_multiplier=noise_multiplier, sampling_rate=sampling_rate)
    return _CONTEXT.multiply(Decimal(rounds), one)


def _epsilon(divergence: Decimal, order: int, delta: Decimal) -> Decimal:
    """Divergence + ln(1 - 1/order) - ln(delta · order) / (order - 1), at least 0."""
    context = _CONTEXT
    shift = context.ln(context.divide(Decimal(order - 1), Decimal(order)))
    tail = context.divide(context.ln(context.multiply(delta, Decimal(order))), Decimal(order - 1))
    return max(Decimal(0), context.subtract(context.add(divergence, shift), tail))


def _rounded_up(number: Decimal) -> Decimal:
    return number.quantize(_PLACES, rounding=ROUND_CEILING, context=_CONTEXT)
