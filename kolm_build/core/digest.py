"""Digests: what names bytes (spec/digest.md).

A blob is named by the plain BLAKE3-256 of its bytes, so `b3sum` agrees; a record by BLAKE3 in
key-derivation mode with one context a kind, so a lock can never pass for a derivation. SHA-256
stands beside every blob for the readers that need it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from typing import ClassVar, Self

from blake3 import blake3

from kolm_build.errors import InvalidRecordError

DIGEST_BYTES = 32


class RecordKind(Enum):
    """The kinds of hashed record; the value is the key-derivation context."""

    TREE = "kolm_build 2026 tree v1"
    DERIVATION = "kolm_build 2026 derivation v1"
    RESOLVED = "kolm_build 2026 resolved v1"
    REALISATION = "kolm_build 2026 realisation v1"
    ENVIRONMENT = "kolm_build 2026 environment v1"
    WEIGHTS = "kolm_build 2026 weights v1"
    ROW = "kolm_build 2026 row v1"
    ROWS = "kolm_build 2026 rows v1"
    MACHINE = "kolm_build 2026 machine v1"
    RECIPE = "kolm_build 2026 recipe section v1"
    MEMO = "kolm_build 2026 memo v1"
    KOLMPACK = "kolm_build 2026 kolmpack v1"
    FEDERATED_ROUND = "kolm_build 2026 federated round v1"


@dataclass(frozen=True, slots=True, order=True)
class _Hash:
    """32 bytes with a text form ``<prefix>:<64 lower-case hex digits>``."""

    raw: bytes

    prefix: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if type(self.raw) is not bytes or len(self.raw) != DIGEST_BYTES:
            reason = f"a digest has {DIGEST_BYTES} bytes"
            raise InvalidRecordError(reason, actual=repr(self.raw)[:80])

    @classmethod
    def parse(cls, text: str) -> Self:
        """The digest that `text` spells; ``str(cls.parse(text)) == text``.

        Raises:
            InvalidRecordError: `text` is not the one text form of a digest of this kind.
        """
        if not re.fullmatch(cls.prefix + ":[0-9a-f]{64}", text):
            raise InvalidRecordError(
                "not a digest",
                expected=f"{cls.prefix}: and 64 lower-case hex digits",
                actual=repr(text)[:90],
            )
        return cls(bytes.fromhex(text[len(cls.prefix) + 1 :]))

    @property
    def hex(self) -> str:
        """The 64 hex digits alone."""
        return self.raw.hex()

    def __str__(self) -> str:
        return f"{self.prefix}:{self.raw.hex()}"


class Digest(_Hash):
    """A BLAKE3-256 digest, text form ``b3:<64 hex>``."""

    __slots__ = ()
    prefix = "b3"

    @classmethod
    def of_blob(cls, data: bytes) -> Self:
        """The digest of `data` as a blob: plain BLAKE3."""
        return cls(blake3(data).digest())

    @classmethod
    def of_record(cls, data: bytes, kind: RecordKind) -> Self:
        """The digest of `data`, the canonical encoding of a record of `kind`."""
        return cls(blake3(data, derive_key_context=kind.value).digest())


class Sha256(_Hash):
    """A SHA-256 digest, text form ``sha256:<64 hex>``."""

    __slots__ = ()
    prefix = "sha256"

    @classmethod
    def of_blob(cls, data: bytes) -> Self:
        """The SHA-256 of `data`."""
        return cls(sha256(data).digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A blob by both its digests and its size.

    Attributes:
        b3: BLAKE3-256 of the bytes; the blob's name in the store.
        sha256: SHA-256 of the same bytes, computed in the same pass.
        size_bytes: Their number.
    """

    b3: Digest
    sha256: Sha256
    size_bytes: int

    @classmethod
    def of(cls, data: bytes) -> Self:
        """The blob that holds `data`."""
        return cls(b3=Digest.of_blob(data), sha256=Sha256.of_blob(data), size_bytes=len(data))
