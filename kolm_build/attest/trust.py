"""The trust file: whom the reader trusts, and for what (spec/attest.md).

It is the only place keys are taken from; a key found in an artifact proves nothing. A principal
is a person or machine with one or more keys and one or more roles. A threshold counts
principals, so one principal with two keys is still one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self

from kolm_build.attest.keys import PublicKey
from kolm_build.core.fields import Fields, shown
from kolm_build.core.name import parse_label
from kolm_build.core.quorum import (
    BUILDS,
    CONTESTED,
    DISTINCT,
    GRADES,
    ORGANISATION,
    STOP,
    Policy,
    Window,
    parse_time,
)
from kolm_build.errors import InvalidRecordError, KeyFileError

VERSION = 2
BUILDER, LOG = "builder", "log"
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
        organisation: Whom the principal belongs to; None where nobody said.
        windows: Keyid to when that key is good; a key that is not there always is.
    """

    name: str
    roles: tuple[str, ...]
    keys: tuple[PublicKey, ...]
    organisation: str | None = None
    windows: Mapping[str, Window] = field(default_factory=dict, hash=False)

    def window(self, keyid: str) -> Window:
        """When the key `keyid` is good."""
        return self.windows.get(keyid, Window())

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The principal that a ``[[principal]]`` table describes, strict."""
        fields = Fields(value)
        name, roles = fields.parsed("name", parse_label), fields.records("roles", _role)
        keys = fields.records("keys", _key)
        made = cls(
            name=name,
            roles=roles,
            keys=tuple(key for key, _ in keys),
            organisation=fields.parsed("organisation", parse_label)
            if fields.has("organisation")
            else None,
            windows={key.keyid: window for key, window in keys if not window.is_open},
        )
        fields.done()
        for where, items in (("roles", made.roles), ("keys", made.keys)):
            if not items or len(set(items)) != len(items):
                raise InvalidRecordError("empty, or the same twice", where=where)
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRules:
    """Which claims of builders count (spec/trust.md).

    Attributes:
        statements: Their types.
        distinct: What no two may share.
        contested: What becomes of a contested output.
        committed: Whether they must have been committed to.
        grade: The least grade.
    """

    statements: tuple[str, ...] = BUILDS
    distinct: tuple[str, ...] = ()
    contested: str = STOP
    committed: bool = False
    grade: str = GRADES[0]

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The rules that a ``[claims]`` table describes, strict."""
        fields = Fields(value)
        made = cls(
            statements=_words(fields, "statements", BUILDS) or BUILDS,
            distinct=_words(fields, "distinct", DISTINCT),
            contested=_word(fields, "contested", CONTESTED),
            committed=fields.flag("committed", default=False),
            grade=_word(fields, "grade", GRADES),
        )
        fields.done()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustPolicy:
    """What it takes for an artifact, or a claim, to be trusted.

    Attributes:
        principals: Everybody who may sign.
        thresholds: Role to the number of principals of that role who must have signed.
        claims: Which claims of builders count.

    Raises:
        InvalidRecordError: A name or key is there twice, no threshold asks for anybody, or the
            policy can never be met.
    """

    principals: tuple[Principal, ...]
    thresholds: Mapping[str, int]
    claims: ClaimRules = ClaimRules()

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
                    advice="Name the principals first, then ask for as many.",
                )
        if not self.thresholds:
            raise InvalidRecordError("no threshold", where="threshold", expected="builder = 1")
        self._check_claims()

    def _check_claims(self) -> None:
        """Refuse rules that no claims can ever meet."""
        policy = self.quorum
        if ORGANISATION in policy.distinct:
            for name, organisation in policy.builders.items():
                if organisation is None:
                    raise InvalidRecordError(
                        "a builder without an organisation, where these have to be distinct",
                        where=f"principal.{name}.organisation",
                    )
        has_log = any(LOG in principal.roles for principal in self.principals)
        if policy.committed and not has_log:
            raise InvalidRecordError(
                "commitments count only where a log has seen them, and nobody is one",
                where="claims.committed",
                expected='a principal with the role "log"',
            )
        able = [
            principal.name
            for principal in self.principals
            if principal.name in policy.builders
            and (has_log or any(principal.window(key.keyid).is_open for key in principal.keys))
        ]
        if policy.grade == GRADES[-1] and len(able) < 2:
            raise InvalidRecordError(
                f"the grade {GRADES[-1]} takes two builders, and fewer could count",
                where="claims.grade",
                expected="two principals with the role builder",
                actual=str(len(able)),
            )
        seats = {policy.seat(name) for name in able}
        if BUILDER in self.thresholds and policy.require > len(seats):
            raise InvalidRecordError(
                "a policy that can never be met",
                where="threshold.builder",
                expected=f"at most {len(seats)}: so many distinct builders could count",
                actual=str(policy.require),
                advice="Ask for fewer builders, name more, or name a log that says when keys with"
                " `from`, `until` or `revoked` signed.",
            )

    @property
    def quorum(self) -> Policy:
        """What it takes to believe a claim; one builder where no threshold says more."""
        builders = {
            principal.name: principal.organisation
            for principal in self.principals
            if BUILDER in principal.roles
        }
        rules = self.claims
        return Policy(
            require=self.thresholds.get(BUILDER, 1),
            builders=builders,
            statements=rules.statements,
            distinct=rules.distinct,
            contested=rules.contested,
            committed=rules.committed,
            grade=rules.grade,
        )

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
        version = fields.integer("version", default=0)
        if version not in (1, VERSION):
            raise InvalidRecordError(
                "unknown version", where="version", expected=f"1 or {VERSION}", actual=str(version)
            )
        made = cls(
            thresholds=fields.record("threshold", _thresholds),
            principals=fields.records("principal", Principal.from_value),
            claims=ClaimRules.from_value(fields.table("claims")),
        )
        fields.done()
        if version == 1 and _is_newer(value):
            raise InvalidRecordError(
                "more than a trust file of version 1 may say",
                where="version",
                expected=str(VERSION),
                actual="1",
            )
        return made


def _is_newer(table: object) -> bool:
    """Whether `table`, which holds a policy, says what came with version 2."""
    found = Fields(table)
    return found.has("claims") or any(
        Fields(principal).has("organisation")
        or any(type(key) is not str for key in Fields(principal).array("keys"))
        for principal in found.array("principal")
    )


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


def _key(value: object) -> tuple[PublicKey, Window]:
    """A key: its text alone, or a table with it and with when it is good."""
    if type(value) is str:
        return PublicKey.parse(value), Window()
    if not isinstance(value, Mapping):
        raise InvalidRecordError("not a public key", actual=repr(value)[:80])
    fields = Fields(value)
    key = fields.parsed("key", PublicKey.parse)
    window = Window(
        start=_time(fields, "from"), end=_time(fields, "until"), revoked=_time(fields, "revoked")
    )
    fields.done()
    return key, window


def _time(fields: Fields, name: str) -> str | None:
    """The time under `name`, a TOML date-time in UTC; None where it is absent."""
    if not fields.has(name):
        return None
    found = fields.take(name, datetime)
    offset = found.utcoffset()
    if offset is None or offset or found.microsecond:
        raise InvalidRecordError(
            "not a time in UTC, of whole seconds",
            where=name,
            expected="such as 2026-01-31T12:00:00Z",
            actual=found.isoformat(),
        )
    return parse_time(found.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))


def _word(fields: Fields, name: str, words: tuple[str, ...]) -> str:
    """One of `words`, the first where it is absent."""
    found = fields.text(name, default=words[0])
    if found not in words:
        raise InvalidRecordError(
            "unknown word", where=name, expected=" or ".join(words), actual=ascii(found)[:80]
        )
    return found


def _words(fields: Fields, name: str, words: tuple[str, ...]) -> tuple[str, ...]:
    """Some of `words`, each once; nothing where it is absent."""
    if not fields.has(name):
        return ()
    found = fields.array(name)
    if not found or any(word not in words for word in found) or len(set(found)) != len(found):
        raise InvalidRecordError(
            "unknown word, nothing, or the same twice",
            where=name,
            expected="some of " + ", ".join(words),
            actual=shown(found)[:80],
        )
    return tuple(word for word in words if word in found)


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
