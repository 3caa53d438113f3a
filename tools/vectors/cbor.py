"""Canonical CBOR: what is written, and what is refused."""

from kolm_build.core import cbor
from tools.vectors._notation import noted

_NESTED: object = []
for _ in range(cbor.MAX_DEPTH):
    _NESTED = [_NESTED]

ACCEPTED = [
    *(0, 1, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63, 2**64 - 1),
    *(-1, -24, -25, -256, -257, -(2**32), -(2**63), -(2**64)),
    *(True, False, None, "", "a", "é", "è", "日本", "😀"),
    *("x" * 23, "x" * 24, "x" * 256, b"", b"\x00\xff", bytes(24)),
    *([], [1, [2, [3]]], {}, {"b": 1, "a": 2, "aa": 3, "B": 4}),
    {"key": {"b": [b"\x01", None, True]}, "é": "text", "z": -5},
    _NESTED,
]

REFUSED = {
    "": "nothing",
    "1800": "23 or less in two bytes",
    "190001": "a long integer",
    "1b00000000ffffffff": "a long integer",
    "f93c00": "a float",
    "fb3ff0000000000000": "a float",
    "c001": "a tag",
    "9fff": "an indefinite array",
    "bfff": "an indefinite map",
    "7f6161ff": "indefinite text",
    "f7": "undefined",
    "f0": "another simple value",
    "0000": "bytes after the value",
    "6161ff": "bytes after the value",
    "61": "text cut off",
    "8201": "an array cut off",
    "61ff": "text that is not UTF-8",
    "6365cc80": "text that is not NFC",
    "63eda080": "a surrogate",
    "a2616201616101": "keys out of order",
    "a2616101616101": "a key twice",
    "a10101": "a key that is not text",
    "a1416101": "a key that is bytes",
    "9b7fffffffffffffff": "a length beyond the end",
    "5b7fffffffffffffff": "a length beyond the end",
    "1c": "a reserved length",
    "81" * 65 + "80": "too deep",
}


def vectors() -> dict[str, object]:
    return {
        "accepted": [
            {"value": noted(value), "cbor": cbor.encode(value).hex()} for value in ACCEPTED
        ],
        "refused": [{"cbor": data, "why": why} for data, why in REFUSED.items()],
    }
