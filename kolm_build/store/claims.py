"""Claims: realisations with what happened around them, each in a file that is never changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from kolm_build.core import cbor
from kolm_build.core.digest import Digest
from kolm_build.core.fields import Fields
from kolm_build.core.realisation import Realisation
from kolm_build.errors import InvalidRecordError
from kolm_build.store.index import Index, chunks, marks

VERSION = 1
VERSION_WITH_EVIDENCE = 2
VERSION_DELIVERED = 3
MAX_EVIDENCE = 64
Evidence = tuple[bytes, bytes | None]
"""The envelope of a countersignature or commitment, and the nonce that opens the latter."""
Key = tuple[Digest, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRealisation:
    """A realisation as the store keeps it.

    Attributes:
        realisation: What was built, compared byte for byte.
        derivation: The derivation that it was built from.
        circumstances: What happened around it; plain values without floats.
        envelope: The signed statement of it, if there is one.
        evidence: Countersignatures and commitments, sorted, each once (spec/trust.md).
        is_delivered: Whether an unsigned claim came in a pack, and is not of a build here.
    """

    realisation: Realisation
    derivation: Digest
    circumstances: Mapping[str, object]
    envelope: bytes | None = None
    evidence: tuple[Evidence, ...] = ()
    is_delivered: bool = False

    def encode(self) -> bytes:
        """The file's bytes; their plain BLAKE3 is its name.

        Raises:
            InvalidRecordError: There is more evidence than a file may hold, or a signed claim is
                said to be somebody's who has not signed it.
        """
        self._check_evidence()
        self._check_delivered()
        value: dict[str, object] = {
            "v": VERSION,
            "realisation": self.realisation.to_value(),
            "derivation": self.derivation.raw,
            "circumstances": dict(self.circumstances),
            "envelope": self.envelope,
        }
        if self.evidence:
            evidence = [[envelope, nonce] for envelope, nonce in self.evidence]
            value |= {"v": VERSION_WITH_EVIDENCE, "evidence": evidence}
        if self.is_delivered:
            value |= {"v": VERSION_DELIVERED, "delivered": True}
        return cbor.encode(value)

    def _check_evidence(self) -> None:
        if len(self.evidence) > MAX_EVIDENCE or self.with_evidence() != self:
            raise InvalidRecordError(
                "evidence that is not sorted, or too much of it",
                where="evidence",
                expected=f"at most {MAX_EVIDENCE} pieces, each once",
                actual=str(len(self.evidence)),
            )

    def _check_delivered(self) -> None:
        if self.is_delivered and self.envelope is not None:
            raise InvalidRecordError("a signed claim needs no mark", where="delivered")

    def bare(self) -> Self:
        """The claim as it leaves the store: without the mark, which is this store's own."""
        return replace(self, is_delivered=False)

    def with_evidence(self, *more: Evidence) -> Self:
        """The same claim with more said about it."""
        evidence = sorted({*self.evidence, *more}, key=lambda pair: (pair[0], pair[1] or b""))
        return replace(self, evidence=tuple(evidence))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The inverse of `encode`, strict."""
        fields = Fields(cbor.decode(data))
        has_evidence, is_delivered = fields.has("evidence"), fields.has("delivered")
        fields.version(_version(has_evidence=has_evidence, is_delivered=is_delivered))
        made = cls(
            realisation=fields.record("realisation", Realisation.from_value),
            derivation=Digest(fields.take("derivation", bytes)),
            circumstances=fields.table("circumstances"),
            envelope=fields.nullable("envelope", bytes),
            evidence=fields.records("evidence", _evidence),
            is_delivered=fields.flag("delivered") if is_delivered else False,
        )
        fields.done()
        made._check_evidence()
        made._check_delivered()
        if has_evidence and not made.evidence:
            raise InvalidRecordError("a list of no evidence", where="evidence")
        if is_delivered and not made.is_delivered:
            raise InvalidRecordError("a mark that marks nothing", where="delivered")
        return made


def _version(*, has_evidence: bool, is_delivered: bool) -> int:
    if is_delivered:
        return VERSION_DELIVERED
    return VERSION_WITH_EVIDENCE if has_evidence else VERSION


def _evidence(value: object) -> Evidence:
    match value:
        case [bytes(envelope), None]:
            return envelope, None
        case [bytes(envelope), bytes(nonce)]:
            return envelope, nonce
        case _:
            raise InvalidRecordError("not a piece of evidence", actual=repr(value)[:80])


def add(index: Index, claim: StoredRealisation, digest: Digest) -> None:
    """Write a claim's row; inside the index's transaction."""
    fact = claim.realisation
    row = (fact.resolved.raw, fact.output, digest.raw, fact.content.raw, claim.derivation.raw)
    index.execute("insert or ignore into claim values (?, ?, ?, ?, ?)", [row])


def of_output(index: Index, resolved: Digest, output: str) -> tuple[Digest, ...]:
    """The claims about one output, sorted by their digests."""
    query = "select digest from claim where resolved = ? and output = ? order by digest"
    return tuple(Digest(raw) for (raw,) in index.select(query, (resolved.raw, output)))  # type: ignore[arg-type]  # the schema's types


def of_derivation(index: Index, derivation: Digest) -> tuple[Digest, ...]:
    """The contents that were ever made from a derivation."""
    query = "select distinct content from claim where derivation = ? order by content"
    return tuple(Digest(raw) for (raw,) in index.select(query, (derivation.raw,)))  # type: ignore[arg-type]  # the schema's types


def contents_of(index: Index, keys: Sequence[Key]) -> dict[Key, tuple[Digest, ...]]:
    """The distinct contents claimed for each of `keys`, sorted; a key without a claim is left out.

    Two contents for one key are a contested output; choosing is not the store's to do.
    """
    wanted = {(resolved.raw, output): (resolved, output) for resolved, output in keys}
    found: dict[tuple[object, object], list[bytes]] = {}
    for some in chunks([raw for raw, _ in wanted]):
        query = f"select resolved, output, content from claim where resolved in ({marks(some)})"
        for raw, output, content in index.select(query, some):
            found.setdefault((raw, output), []).append(content)  # type: ignore[arg-type]  # see schema
    return {key: _sorted(found[pair]) for pair, key in wanted.items() if pair in found}


def _sorted(raws: list[bytes]) -> tuple[Digest, ...]:
    return tuple(map(Digest, sorted(set(raws)) if len(raws) > 1 else raws))
