"""What a store keeps for good: derivations, claims about what they gave, logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kolm_build.core.digest import Digest, RecordKind
from kolm_build.store.door import door
from kolm_build.store.index import Row
from kolm_build.store.layout import Kind
from kolm_build.store.opened import Opened, absent
from kolm_build.store.write import Batch

if TYPE_CHECKING:
    from kolm_build.core.derivation import Derivation
    from kolm_build.core.realisation import Realisation
    from kolm_build.store.claims import StoredRealisation


class Records(Opened):
    """Derivations, claims and logs of an open store."""

    def put_derivation(self, derivation: Derivation) -> Digest:
        """Keep a derivation, for good."""
        data = derivation.encode()
        digest = Digest.of_record(data, RecordKind.DERIVATION)
        return self._keep(Kind.DERIVATION, digest, data)

    def has_derivation(self, digest: Digest) -> bool:
        """Whether the derivation is here."""
        with door(self._layout.root):
            return self._index.has(Kind.DERIVATION, digest)

    def derivation(self, digest: Digest) -> Derivation:
        """A derivation; the errors of `tree`."""
        from kolm_build.core.derivation import Derivation

        with door(self._layout.root):
            data = self._reader.record(Kind.DERIVATION, digest, context=RecordKind.DERIVATION)
            return Derivation.decode(data)

    def derivations(self) -> tuple[Digest, ...]:
        """Every derivation that was ever put here, sorted."""
        with door(self._layout.root):
            return tuple(row.digest for row in self._index.rows(Kind.DERIVATION))

    def put_log(self, data: bytes) -> Digest:
        """Keep a build's log, for good; its digest is a blob's."""
        return self._keep(Kind.LOG, Digest.of_blob(data), data)

    def read_log(self, digest: Digest) -> bytes:
        """A log; the errors of `tree`."""
        with door(self._layout.root):
            return self._reader.record(Kind.LOG, digest, context=None)

    def add_realisation(
        self,
        realisation: Realisation,
        *,
        derivation: Digest,
        circumstances: Mapping[str, object],
        envelope: bytes | None = None,
    ) -> None:
        """Keep a claim, for good; claims that disagree are all kept.

        Raises:
            MissingObjectError: The content is not in the store.
        """
        from kolm_build.store.claims import StoredRealisation

        claim = StoredRealisation(
            realisation=realisation,
            derivation=derivation,
            circumstances=circumstances,
            envelope=envelope,
        )
        self._keep_claim(claim, needs_content=True)

    def add_claim(self, claim: StoredRealisation) -> None:
        """Keep a claim that somebody else made and this reader believes, its content here or not.

        Args:
            claim: As it was given, envelope and all.
        """
        self._keep_claim(claim, needs_content=False)

    def realisations(self, resolved: Digest, output: str) -> tuple[StoredRealisation, ...]:
        """Every claim about one output; the errors of `tree`."""
        from kolm_build.store import claims

        with door(self._layout.root):
            return tuple(
                self._claim(digest) for digest in claims.of_output(self._index, resolved, output)
            )

    def contents_of(
        self, keys: Sequence[tuple[Digest, str]]
    ) -> Mapping[tuple[Digest, str], tuple[Digest, ...]]:
        """The distinct contents claimed for each (resolved derivation, output), sorted.

        Two or more mean that builders disagree. A key without a claim is left out; a content may
        have been collected since, which `has_trees` tells.
        """
        from kolm_build.store import claims

        with door(self._layout.root):
            return claims.contents_of(self._index, keys)

    def _keep(self, kind: Kind, digest: Digest, data: bytes) -> Digest:
        def keep(batch: Batch) -> Digest:
            batch.write(Row(kind, digest, len(data)), data)
            return digest

        return self._written(keep, pin=lambda made: made)

    def _keep_claim(self, claim: StoredRealisation, *, needs_content: bool) -> None:
        from kolm_build.store import claims

        data = claim.encode()
        digest, content = Digest.of_blob(data), claim.realisation.content

        def keep(batch: Batch) -> None:
            if needs_content and not batch.has(Kind.TREE, content):
                raise absent(content)
            batch.write(Row(Kind.CLAIM, digest, len(data)), data)
            batch.also(lambda: claims.add(self._index, claim, digest))

        self._written(keep, pin=lambda _: content)

    def _claim(self, digest: Digest) -> StoredRealisation:
        from kolm_build.store.claims import StoredRealisation

        return StoredRealisation.decode(self._reader.record(Kind.CLAIM, digest, context=None))
