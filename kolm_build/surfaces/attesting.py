"""Signing what was rebuilt (spec/trust.md)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.core.digest import Digest
from kolm_build.core.quorum import REBUILT
from kolm_build.engine.joblog import LOG
from kolm_build.errors import MissingObjectError, NotReproducibleError
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.substituting import signed

if TYPE_CHECKING:
    from kolm_build.attest.keys import SigningKey
    from kolm_build.engine.scheduler import Realised
    from kolm_build.store.claims import StoredRealisation
    from kolm_build.surfaces.building import Prepared
    from kolm_build.surfaces.terminal import Terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestor:
    """Signs what was rebuilt.

    Attributes:
        key: With what; nothing is signed where it is None.
        new: The store of the rebuild.
        first: Where the store of the first build is; it is made where there is none.
        terminal: Where to say how much was signed.
    """

    key: SigningKey | None
    new: LocalStore
    first: Path
    terminal: Terminal

    @contextmanager
    def compared(self, prepared: Prepared, realised: Realised) -> Iterator[None]:
        """What is compared inside is signed afterwards, whether it is the same or not.

        Args:
            prepared: What was rebuilt.
            realised: What came out.
        """
        try:
            yield
        except NotReproducibleError:
            self._attest(prepared, realised)
            raise
        self._attest(prepared, realised)

    def _attest(self, prepared: Prepared, realised: Realised) -> None:
        """Keep signed claims of all that was rebuilt, in both stores."""
        if self.key is None:
            return
        rebuilt = _rebuilt(prepared, realised, self.new)
        claims = [signed(claim, self.key, REBUILT) for claim in rebuilt]
        self._keep(prepared, claims, self.new)
        if self.first.resolve() != self.new.root.resolve():
            with LocalStore.open(self.first) as store:
                self._keep(prepared, claims, store)
                for claim in claims:
                    _keep_log(claim, self.new, store)
        keyid = self.key.public.keyid[:16]
        self.terminal.tell(f"signed as rebuilt: {len(claims)} outputs, with the key {keyid}")

    @staticmethod
    def _keep(prepared: Prepared, claims: list[StoredRealisation], store: LocalStore) -> None:
        for claim in claims:
            store.put_derivation(prepared.instance.derivations[claim.derivation])
            store.add_claim(claim)


def _rebuilt(
    prepared: Prepared, realised: Realised, store: LocalStore
) -> Iterator[StoredRealisation]:
    """The claims of the rebuild: everything but what the lock fixes by digest."""
    for digest, derivation in prepared.instance.derivations.items():
        resolved = realised.keys.get(digest)
        if resolved is not None and not derivation.is_fixed:
            for output, _ in derivation.outputs:
                for claim in store.realisations(resolved, output):
                    if not claim.is_delivered:
                        yield claim


def _keep_log(claim: StoredRealisation, source: LocalStore, dest: LocalStore) -> None:
    log = claim.circumstances.get(LOG)
    if isinstance(log, str):
        try:
            dest.put_log(source.read_log(Digest.parse(log)))
        except MissingObjectError:
            return  # the claim holds without it
