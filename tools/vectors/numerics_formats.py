"""The value of every code of the small storage formats, from their definition (NUM-57)."""

import math
import struct

FORMATS = {"e2m1": (2, 1), "e4m3": (4, 3), "e5m2": (5, 2)}
NAN = "7fc00000"


def _special(name: str, size: int) -> str | None:
    """What a code stands for that is no number; `size` is the code without its sign."""
    if name == "e4m3" and size == 0x7F:
        return NAN
    if name == "e5m2" and size > 0x7C:
        return NAN
    return None


def _bits(name: str, code: int) -> str:
    exponent_bits, mantissa_bits = FORMATS[name]
    negative = code >> (exponent_bits + mantissa_bits)
    size = code & ((1 << (exponent_bits + mantissa_bits)) - 1)
    mantissa = size & ((1 << mantissa_bits) - 1)
    exponent = size >> mantissa_bits
    bias = (1 << (exponent_bits - 1)) - 1
    scaled = mantissa + ((1 << mantissa_bits) if exponent else 0)
    value = math.ldexp(scaled, max(exponent, 1) - bias - mantissa_bits)
    if name == "e5m2" and size == 0x7C:
        value = math.inf
    signed = struct.pack(">f", -value if negative else value).hex()
    return _special(name, size) or signed


def vectors() -> dict[str, object]:
    """The binary32 bits of every code, in ascending order of the codes."""
    return {
        name: [_bits(name, code) for code in range(1 << (1 + sum(bits)))]
        for name, bits in FORMATS.items()
    }
