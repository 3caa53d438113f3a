"""The split: which rows are kept out of training (spec/split.md).

A row's side depends on its own key and the seed, never on other rows, so rows do not move when
others are added, and a verifier recomputes the split from the rows alone. Needs the standard
library alone.
"""

from __future__ import annotations

from hashlib import sha256

from kolm_build.core import cbor
from kolm_build.errors import InvalidRecordError

MODULUS = 5


def is_holdout(key: str, seed: str, modulus: int = MODULUS) -> bool:
    """Whether the rows of `key` are kept out of training: one key in `modulus` is.

    Args:
        key: The row's group where the recipe names a group column, else its input text; NFC.
        seed: The recipe's split seed.
        modulus: One over the share of keys that is held out, 2 to 1000.

    Raises:
        InvalidRecordError: `key` is not NFC text, or `modulus` is out of range.
    """
    if not 2 <= modulus <= 1000:
        raise InvalidRecordError(
            "modulus out of range", where="modulus", expected="2 to 1000", actual=str(modulus)
        )
    digest = sha256(cbor.encode(key) + seed.encode()).digest()
    return int.from_bytes(digest, "big") % modulus == 0
