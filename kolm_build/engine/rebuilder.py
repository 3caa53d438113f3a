"""One derivation: found or built (design section 6).

The builder runs under the kernel's lock of the resolved derivation, so of two processes that want
the same thing one builds and the other finds it. Realisations are added, never changed; two that
disagree are an alarm.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from kolm_build.core import plan as core_plan
from kolm_build.core.compare import differences
from kolm_build.core.derivation import Derivation
from kolm_build.core.digest import Digest
from kolm_build.core.realisation import Realisation
from kolm_build.engine.events import Built, OnEvent, Reused, Waiting
from kolm_build.engine.protocol import Builder, BuildResult, Store
from kolm_build.engine.substitution import Lookup, Substitution
from kolm_build.engine.weights import first_tensor
from kolm_build.errors import NotReproducibleError

Mode = Literal["reuse", "check", "rebuild"]
"""`reuse` builds what is missing; `check` builds again what is there and compares, but for what
a digest in the lock fixes; `rebuild` builds everything."""

Contents = Mapping[str, Digest]
"""Output name to content."""

Claims = Mapping[str, tuple[Digest, ...]]
"""Output name to the distinct contents claimed for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilder:
    """Makes the outputs of derivations be there.

    Attributes:
        store: Where they are kept.
        builder: Runs what is missing.
        on_event: Told what happens.
        mode: What to do with outputs that are there.
        substitution: Copies what others have.
    """

    store: Store
    builder: Builder
    on_event: OnEvent
    mode: Mode = "reuse"
    substitution: Substitution | None = None

    def realise(self, derivation: Derivation, resolved: Derivation) -> tuple[Contents, str]:
        """The contents of the derivation's outputs, which are then all there, and how they came.

        Args:
            derivation: As the lock has it.
            resolved: The same with every input by content; the inputs are in the store.

        Returns:
            Output name to content, and ``cut-off``, ``substituted``, ``built``, ``fetched`` or
            ``verified``.

        Raises:
            KolmError: It could not be built, or two builds of it disagree.
        """
        key = resolved.resolved_digest
        found = self._reusable(resolved, key)
        if found is None:
            holder = f"process {os.getpid()}, which builds {derivation.name}"
            with self.store.lock(key, on_wait=self._waiting(derivation), holder=holder):
                # Whoever held the lock may have built it.
                found = self._reusable(resolved, key)
                if found is None:
                    copied = self._substituted(derivation, resolved, key)
                    if copied is not None:
                        return copied, "substituted"
                    return self._build(derivation, resolved, key)
        self.on_event(Reused(node=derivation.name, contents=found, cut_off=True))
        return found, "cut-off"

    def _reusable(self, resolved: Derivation, key: Digest) -> Contents | None:
        """What is there and may be used as it is."""
        if self._is_to_run(resolved):
            return None
        claims = claimed(self.store.contents_of, resolved, key)
        found = {name: _sole(some, f"{resolved.name}.{name}") for name, some in claims.items()}
        complete = len(found) == len(resolved.outputs)
        return found if complete and self._has_all(found) else None

    def _substituted(
        self, derivation: Derivation, resolved: Derivation, key: Digest
    ) -> Contents | None:
        """What others have of it, copied; None where they have not all, or it is to be built."""
        if self.substitution is None or self._is_to_run(resolved):
            return None
        claims = claimed(Lookup(self.store, self.substitution.substitutes), resolved, key)
        found = {name: _sole(some, f"{resolved.name}.{name}") for name, some in claims.items()}
        complete = len(found) == len(resolved.outputs)
        return found if complete and self.substitution.bring(derivation, key, found) else None

    def _is_to_run(self, resolved: Derivation) -> bool:
        return self.mode == "rebuild" or (self.mode == "check" and not resolved.is_fixed)

    def _has_all(self, found: Contents) -> bool:
        trees = set(found.values())
        return self.store.pin(trees) == trees

    def _waiting(self, derivation: Derivation) -> Callable[[str], None]:
        def on_wait(holder: str) -> None:
            self.on_event(Waiting(node=derivation.name, holder=holder))

        return on_wait

    def _build(
        self, derivation: Derivation, resolved: Derivation, key: Digest
    ) -> tuple[Contents, str]:
        before = claimed(self.store.contents_of, resolved, key)
        result = self.builder.build(derivation, resolved, self.on_event)
        self._record(derivation, key, result)
        self._compare(derivation, before, result.contents)
        verified = len(before) == len(result.contents) and self.mode != "reuse"
        self.on_event(
            Built(
                node=derivation.name,
                contents=result.contents,
                fetched=result.fetched,
                verified=verified,
                wall_ms=result.wall_ms,
            )
        )
        return result.contents, _how(result, verified=verified)

    def _record(self, derivation: Derivation, key: Digest, result: BuildResult) -> None:
        digest = self.store.put_derivation(derivation)
        for output, content in result.contents.items():
            self.store.add_realisation(
                Realisation(resolved=key, output=output, content=content),
                derivation=digest,
                circumstances=result.circumstances,
            )

    def _compare(self, derivation: Derivation, before: Claims, after: Contents) -> None:
        """Raise if a claim from before and this build disagree; both are kept."""
        for output in sorted(after):
            for content in before.get(output, ()):
                if content != after[output]:
                    where = f"{derivation.name}.{output}"
                    raise _different(self.store, where, content, after[output])


def _how(result: BuildResult, *, verified: bool) -> str:
    if verified:
        return "verified"
    return "fetched" if result.fetched else "built"


def claimed(lookup: core_plan.Lookup, resolved: Derivation, key: Digest) -> Claims:
    """What the outputs are claimed to be, by name; those of which nothing is known are left out.

    An output fixed by a digest needs no realisation: the digest says what it is.
    """
    fixed = {name: (expected,) for name, expected in resolved.outputs if expected is not None}
    keys = [(key, name) for name, expected in resolved.outputs if expected is None]
    claims = lookup(keys) if keys else {}
    return fixed | {name: contents for (_, name), contents in claims.items()}


def _sole(contents: tuple[Digest, ...], where: str) -> Digest:
    if len(contents) > 1:
        raise NotReproducibleError(
            "contested: builds of the same thing gave different contents",
            where=where,
            expected=str(contents[0]),
            actual=", ".join(map(str, contents[1:])),
            advice="`kolm build --check` builds it again; `kolm diff` compares the two.",
        )
    return contents[0]


def _different(store: Store, where: str, before: Digest, after: Digest) -> NotReproducibleError:
    """The error that names the first file, and tensor, that differs."""
    place = ""
    if store.has_trees({before, after}) == {before, after}:
        difference = next(differences(before, after, store.tree))
        tensor = first_tensor(store, difference)
        place = f", first in {difference.path}" + (f", tensor {tensor}" if tensor else "")
    return NotReproducibleError(
        f"built again, it is not the same{place}",
        where=where,
        expected=str(before),
        actual=str(after),
        advice="Both are kept. `kolm diff` shows every difference.",
    )
