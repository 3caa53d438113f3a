"""The trust file: whom the reader trusts, and for what (spec/attest.md).

It is the only place keys are taken from; a key found in an artifact proves nothing. A principal
is a person or machine with one or more keys and one or more roles. A threshold counts
principals, so one principal with two keys is still one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from kolm_build.attest.keys import PublicKey
from kolm_build.core.fields import Fields
from kolm_build.core.name import parse_label
from kolm_build.errors import InvalidRecordError, KeyFileError

VERSION = 1
MAX_BYTES = 1 << 20

STATEMENTS: Mapping[str, str] = {
    "builder": "built",
    "evaluator": "evaluated",
    "approver": "approved",
    "log": "logged",
}
"""Each role, and the one kind of statement it may make."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Somebody who signs.

    Attributes:
        name: A label for messages.
        roles: Keys of `STATEMENTS`.
        keys: The principal's public keys.
    """

    name: str
    roles: tuple[str, ...]
    keys: tuple[PublicKey, ...]

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The principal that a ``[[principal]]`` table describes, strict."""
        fields = Fields(value)
        made = cls(
            name=fields.parsed("name", parse_label),
            roles=fields.records("roles", _role),
            keys=fields.records("keys", _key),
        )
        fields.done()
        for where, items in (("roles", made.roles), ("keys", made.keys)):
            if not items or len(set(items)) != len(items):
                raise InvalidRecordError("empty, or the same twice", where=where)
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustPolicy:
    """What it takes for an artifact to be trusted.

    Attributes:
        principals: Everybody who may sign.
        thresholds: Role to the number of principals of that role who must have signed.

    Raises:
        InvalidRecordError: A name or key is there twice, no threshold asks for anybody, or one
            asks for more principals than there are.
    """

    principals: tuple[Principal, ...]
    thresholds: Mapping[str, int]

    def __post_init__(self) -> None:
        _check_unrepeated("name", (principal.name for principal in self.principals))
        _check_unrepeated(
            "keys", (str(key) for principal in self.principals for key in principal.keys)
        )
        for role, count in self.thresholds.items():
            there = sum(role in principal.roles for principal in self.principals)
            if not 1 <= count <= there:
                raise InvalidRecordError(
                    "a threshold that cannot be met, or asks for nobody",
                    where=f"threshold.{role}",
                    expected=f"1 to {there}, the principals with this role",
                    actual=str(count),
                )
        if not self.thresholds:
            raise InvalidRecordError("no threshold", where="threshold", expected="builder = 1")

    def signer(self, keyid: str) -> tuple[Principal, PublicKey] | None:
        """Whose key `keyid` names, and the key; None where nobody's that is trusted."""
        for principal in self.principals:
            for key in principal.keys:
                if key.keyid == keyid:
                    return principal, key
        return None

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The policy that a trust file's table describes, strict."""
        fields = Fields(value)
        fields.version(VERSION)
        made = cls(
            thresholds=fields.record("threshold", _thresholds),
            principals=fields.records("principal", Principal.from_value),
        )
        fields.done()
        return made


def parse_trust(data: bytes, file: str) -> TrustPolicy:
    """The policy in `data`, a trust file named `file`.

    Raises:
        KeyFileError: It is not a trust file of this version.
    """
    try:
        if len(data) > MAX_BYTES:
            raise InvalidRecordError("too large for a trust file", actual=f"{len(data)} bytes")
        return TrustPolicy.from_value(tomllib.loads(data.decode()))
    except InvalidRecordError as error:
        raise KeyFileError(
            error.reason,
            file=file,
            where=error.where,
            expected=error.expected,
            actual=error.actual,
            advice=error.advice,
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise KeyFileError("not TOML", file=file, actual=str(error)[:120]) from None


def _role(value: object) -> str:
    if type(value) is not str or value not in STATEMENTS:
        raise InvalidRecordError(
            "unknown role", expected=", ".join(STATEMENTS), actual=repr(value)[:80]
        )
    return value


def _key(value: object) -> PublicKey:
    if type(value) is not str:
        raise InvalidRecordError("not a public key", actual=repr(value)[:80])
    return PublicKey.parse(value)


def _thresholds(value: object) -> Mapping[str, int]:
    fields = Fields(value)
    found = {role: fields.integer(role) for role in STATEMENTS if fields.has(role)}
    fields.done()
    return found


def _check_unrepeated(where: str, texts: Iterable[str]) -> None:
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            raise InvalidRecordError("there twice", where=f"principal.{where}", actual=text)
        seen.add(text)
