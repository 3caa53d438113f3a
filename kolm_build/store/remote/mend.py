"""A store that mends itself from substituters: what repair gave up comes as any tree comes.

Repair first makes invalid what is damaged and all trees above it. These trees are then fetched
again, which brings just the blobs that are missing, each hashed while it arrives and visible only
when it is right (spec/substituter.md). Derivations and logs are small, and are asked for by name.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace

from kolm_build.core.digest import Digest
from kolm_build.store.layout import Kind
from kolm_build.store.local import LocalStore
from kolm_build.store.remote.fetch import OnBytes
from kolm_build.store.remote.substitutes import Substitutes
from kolm_build.store.verify import MADE_INVALID, PUT_BACK, Finding, Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """What became of a store.

    Attributes:
        report: What was found, and what was done about it.
        came_bytes: How many bytes came.
        lost: The trees that nobody could give; the next build makes them again.
    """

    report: Report
    came_bytes: int
    lost: tuple[Digest, ...]


def mend(store: LocalStore, those: Substitutes, *, deep: bool, on_bytes: OnBytes) -> Mended:
    """Repair a store with what substituters have.

    Args:
        store: The store, open for writing.
        those: The substituters.
        deep: Check as `LocalStore.fsck` does.
        on_bytes: Told how many bytes of how many have come, for each tree.
    """
    before, _ = store.contents()
    report = store.fsck(repair=True, deep=deep, substitute=those.record)
    gone = before - store.contents()[0]
    came = 0
    for tree in sorted(gone):
        if not store.pin([tree]):  # it may have come with another
            arrived = those.fetch(tree, on_bytes)
            came += arrived.bytes_fetched if arrived else 0
    trees, blobs = store.contents()
    findings = tuple(_after(one, trees, blobs) for one in report.findings)
    return Mended(
        report=replace(report, findings=findings),
        came_bytes=came,
        lost=tuple(sorted(gone - trees)),
    )


def _after(finding: Finding, trees: Set[Digest], blobs: Set[Digest]) -> Finding:
    """The finding, with what was fetched since repair made its object invalid."""
    here = trees if finding.kind is Kind.TREE else blobs if finding.kind is Kind.BLOB else ()
    if finding.repaired == MADE_INVALID and finding.digest in here:
        return replace(finding, repaired=PUT_BACK)
    return finding
