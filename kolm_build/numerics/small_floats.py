"""Floating-point numbers of four and eight bits, in whole-number operations (spec/quantization.md).

E2M1 and E4M3 are coded and read through the bits of binary32, so no kernel of a library has a say
in them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_MANTISSA = 23
_BIAS = 127
_SIZE = 0x7FFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallFloat:
    """A sign, an exponent and a mantissa in a byte or half of one.

    Attributes:
        exponent: Bits of the exponent.
        mantissa: Bits of the mantissa.
        largest: The largest number; a larger one becomes it.
        has_negative_zero: Whether -0 keeps its sign, as it does in PyTorch's E4M3.
    """

    exponent: int
    mantissa: int
    largest: float
    has_negative_zero: bool

    @property
    def bias(self) -> int:
        """What is taken from the exponent's bits."""
        return (1 << (self.exponent - 1)) - 1

    @property
    def sign(self) -> int:
        """The place of the sign."""
        return self.exponent + self.mantissa

    @property
    def rebias(self) -> int:
        """What binary32's exponent, and what is after it, is above this one's."""
        return (_BIAS - self.bias) << self.mantissa


E2M1 = SmallFloat(exponent=2, mantissa=1, largest=6.0, has_negative_zero=False)
E4M3 = SmallFloat(exponent=4, mantissa=3, largest=448.0, has_negative_zero=True)


def encode(numbers: torch.Tensor, form: SmallFloat) -> torch.Tensor:
    """The codes nearest to `numbers`, float32: ties to even, too large ones the largest (QUANT-9).

    Returns:
        uint8, of the same shape. A negative number that becomes 0 keeps its sign.
    """
    size = numbers.abs().clamp(max=form.largest)
    bits = size.view(torch.int32)
    dropped = _MANTISSA - form.mantissa
    even = (_right(bits, dropped) & 1) + ((1 << (dropped - 1)) - 1)
    normal = _right(bits + even, dropped) - form.rebias
    small = (size * 2.0 ** (form.bias - 1 + form.mantissa)).round().to(torch.int32)
    codes = torch.where(size < 2.0 ** (1 - form.bias), small, normal)
    negative = numbers.signbit() if form.has_negative_zero else numbers < 0
    return (codes | _left(negative.to(torch.int32), form.sign)).to(torch.uint8)


def decode(codes: torch.Tensor, form: SmallFloat) -> torch.Tensor:
    """The numbers of `codes`, uint8, exactly: float32, of the same shape.

    A code that stands for no number is read as if it stood for the next one; what is read from a
    file is checked before.
    """
    whole = codes.to(torch.int32)
    size = whole & ((1 << form.sign) - 1)
    normal = _left(size + form.rebias, _MANTISSA - form.mantissa).view(torch.float32)
    small = size.float() * 2.0 ** (1 - form.bias - form.mantissa)
    found = torch.where(size < (1 << form.mantissa), small, normal)
    return torch.where(_right(whole, form.sign) == 1, -found, found)


def to_e8m0(magnitudes: torch.Tensor) -> torch.Tensor:
    """The E8M0 codes of blocks of E2M1 with the largest `magnitudes`, float32 (QUANT-5).

    The power of two at or below the magnitude, where it counts as the next one from 1.75 of it
    on, over 4.
    """
    rounded = _right(magnitudes.view(torch.int32) + (1 << (_MANTISSA - 2)), _MANTISSA)
    return (rounded - 2).clamp(min=0).to(torch.uint8)


def from_e8m0(codes: torch.Tensor) -> torch.Tensor:
    """The powers of two of `codes`, uint8 below 255, exactly: float32."""
    whole = codes.to(torch.int32)
    normal = _left(whole, _MANTISSA).view(torch.float32)
    return torch.where(whole == 0, torch.full_like(normal, 2.0**-127), normal)


def is_number(codes: torch.Tensor) -> torch.Tensor:
    """Whether each E4M3 code, uint8, stands for a number."""
    return (codes & 0x7F) != 0x7F


def _left(whole: torch.Tensor, places: int) -> torch.Tensor:
    return torch.bitwise_left_shift(whole, places)


def _right(whole: torch.Tensor, places: int) -> torch.Tensor:
    return torch.bitwise_right_shift(whole, places)
