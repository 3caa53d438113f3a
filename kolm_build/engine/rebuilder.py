"""One derivation: found or built (design section 6).

The builder runs under the kernel's lock of the resolved derivation, so of two processes that want
the same thing one builds and the other finds it. Realisations are added, never changed; two that
disagree are an alarm.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from kolm_build.core.compare import differences
from kolm_build.core.derivation import Derivation
from kolm_build.core.digest import Digest
from kolm_build.core.realisation import Realisation
from kolm_build.engine.events import Built, OnEvent, Reused, Waiting
from kolm_build.engine.protocol import Builder, BuildResult, Store
from kolm_build.engine.weights import first_tensor
from kolm_build.errors import NotReproducibleError

Mode = Literal["reuse", "check", "rebuild"]
"""`reuse` builds what is missing; `check` builds again what is there and compares, but for what
a digest in the lock fixes; `rebuild` builds everything."""

Contents = Mapping[str, Digest]
"""Output name to content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilder:
    """Makes the outputs of derivations be there.

    Attributes:
        store: Where they are kept.
        builder: Runs what is missing.
        on_event: Told what happens.
        mode: What to do with outputs that are there.
    """

    store: Store
    builder: Builder
    on_event: OnEvent
    mode: Mode = "reuse"

    def realise(
        self, derivation: Derivation, resolved: Derivation, *, needed: Collection[str]
    ) -> tuple[Contents, str]:
        """The contents of the derivation's outputs, and how they came.

        Args:
            derivation: As the lock has it.
            resolved: The same with every input by content; the inputs are in the store.
            needed: The outputs whose trees must be there.

        Returns:
            Output name to content, and ``cut-off``, ``built``, ``fetched`` or ``verified``.

        Raises:
            KolmError: It could not be built, or two builds of it disagree.
        """
        key = resolved.resolved_digest
        found = self._reusable(resolved, key, needed)
        if found is None:
            with self.store.lock(key, on_wait=self._waiting(derivation)):
                # Whoever held the lock may have built it.
                found = self._reusable(resolved, key, needed)
                if found is None:
                    return self._build(derivation, resolved, key)
        self.on_event(Reused(node=derivation.name, contents=found, cut_off=True))
        return found, "cut-off"

    def _reusable(
        self, resolved: Derivation, key: Digest, needed: Collection[str]
    ) -> Contents | None:
        """What is there and may be used as it is."""
        if self.mode == "rebuild" or (self.mode == "check" and not resolved.is_fixed):
            return None
        found = claimed(self.store, resolved, key)
        if found is None or not all(self.store.has_tree(found[name]) for name in needed):
            return None
        return found

    def _waiting(self, derivation: Derivation) -> _OnHolder:
        return _OnHolder(node=derivation.name, on_event=self.on_event)

    def _build(
        self, derivation: Derivation, resolved: Derivation, key: Digest
    ) -> tuple[Contents, str]:
        before = claimed(self.store, resolved, key)
        result = self.builder.build(derivation, resolved, self.on_event)
        self._record(derivation, key, result)
        if before is not None:
            self._compare(derivation, before, result.contents)
        verified = before is not None and self.mode != "reuse"
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

    def _compare(self, derivation: Derivation, before: Contents, after: Contents) -> None:
        for output in sorted(after):
            if before[output] != after[output]:
                raise _different(self.store, derivation.name, output, before, after)


@dataclass(frozen=True, slots=True, kw_only=True)
class _OnHolder:
    """Tells who holds the lock that a node waits for."""

    node: str
    on_event: OnEvent

    def __call__(self, holder: str) -> None:
        """Tell of `holder`."""
        self.on_event(Waiting(node=self.node, holder=holder))


def _how(result: BuildResult, *, verified: bool) -> str:
    if verified:
        return "verified"
    return "fetched" if result.fetched else "built"


def claimed(store: Store, resolved: Derivation, key: Digest) -> Contents | None:
    """What realisations say the outputs are; None unless they speak of every output.

    An output fixed by a digest needs no realisation: the digest says what it is.

    Raises:
        NotReproducibleError: They disagree.
    """
    found = {name: expected for name, expected in resolved.outputs if expected is not None}
    keys = [(key, name) for name, expected in resolved.outputs if expected is None]
    claims = store.contents_of(keys) if keys else {}
    for _, name in keys:
        contents = claims.get((key, name), ())
        if not contents:
            return None
        found[name] = sole(contents, f"{resolved.name}.{name}")
    return found


def sole(contents: tuple[Digest, ...], where: str) -> Digest:
    """The one content among the claims for an output.

    Raises:
        NotReproducibleError: There are several.
    """
    if len(contents) > 1:
        raise NotReproducibleError(
            "contested: builds of the same thing gave different contents",
            where=where,
            expected=str(contents[0]),
            actual=", ".join(map(str, contents[1:])),
            advice="`kolm diff` shows where they differ. Build in a fresh store (`--store`), and"
            " trust none of them until you know why.",
        )
    return contents[0]


def _different(
    store: Store, node: str, output: str, before: Contents, after: Contents
) -> NotReproducibleError:
    """The error that names the first file, and tensor, that differs."""
    place = ""
    for difference in differences(before[output], after[output], store.tree):
        tensor = first_tensor(store, difference)
        place = f", first in {difference.path}" + (f", tensor {tensor}" if tensor else "")
        break
    return NotReproducibleError(
        f"built again, it is not the same{place}",
        where=f"{node}.{output}",
        expected=str(before[output]),
        actual=str(after[output]),
        advice="Both are kept. `kolm diff` shows every difference.",
    )
