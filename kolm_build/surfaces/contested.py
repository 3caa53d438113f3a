"""What a store knows of a training: its inputs by content, and every trace claimed for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kolm_build.core.derivation import OutputInput
from kolm_build.core.digest import Digest
from kolm_build.core.plan import plan
from kolm_build.errors import MissingObjectError, UsageError
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.lookup import Look, find_output

TRACE = "trace"
"""The output that tells a node that trains from others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A node that trains.

    Attributes:
        step: The step that trains.
        inputs: Role to content.
        traces: The distinct contents that are claimed for its trace, sorted, each with the
            circumstances of its first claim.
    """

    step: str
    inputs: Mapping[str, Digest]
    traces: tuple[tuple[Digest, Mapping[str, object]], ...]


def training_of(look: Look, text: str, store: LocalStore) -> Training:
    """The training that `text` names.

    Raises:
        UsageError: It names no node that trains.
        MissingObjectError: Its inputs were never built here.
    """
    digest = find_output(look.instance, text).derivation
    derivation = look.instance.derivations[digest]
    if TRACE not in dict(derivation.outputs):
        raise UsageError(
            "not a node that trains",
            file=text,
            expected=f"a node with the output {TRACE!r}, such as train-1",
            actual=f"{derivation.name}, step {derivation.step}",
        )
    needs = tuple(need for _, need in derivation.inputs if isinstance(need, OutputInput))
    known = plan(
        needs,
        derivations=look.instance.derivations,
        lookup=store.contents_of,
        present=store.has_trees,
    ).contents
    missing = [need for need in needs if need not in known]
    if missing:
        raise MissingObjectError(
            "an input was never built here",
            where=look.names[missing[0].derivation],
            advice="`kolm build` builds it.",
        )
    inputs = {
        role: known[value] if isinstance(value, OutputInput) else value.content
        for role, value in derivation.inputs
    }
    resolved = derivation.resolved_digest_with({need: known[need] for need in needs})
    traces: dict[Digest, Mapping[str, object]] = {}
    for claim in store.realisations(resolved, TRACE):
        traces.setdefault(claim.realisation.content, claim.circumstances)
    return Training(
        step=derivation.step,
        inputs=inputs,
        traces=tuple(sorted(traces.items(), key=lambda item: item[0])),
    )
