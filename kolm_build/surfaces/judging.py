"""Whether an artifact's attestations meet a trust file, and why (spec/attest.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kolm_build.attest.attestation import (
    Digests,
    Signed,
    check_attestations,
    shortfalls,
    why_not,
)
from kolm_build.attest.verify import verify_container

if TYPE_CHECKING:
    from kolm_build.attest.container import Container
    from kolm_build.attest.trust import TrustPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactVerdict:
    """What follows from a trust file and an artifact's attestations.

    Attributes:
        artifact_id: ``sha256:<hex>`` of its manifest.
        signatures: The attestations.
        reasons: For each, why it does not count; empty where it does.
        missing: What it lacks, for people.
    """

    artifact_id: str
    signatures: tuple[Signed, ...]
    reasons: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def is_met(self) -> bool:
        """Whether every threshold is met."""
        return not self.missing

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        pairs = zip(self.signatures, self.reasons, strict=True)
        return {
            "verdict": "met" if self.is_met else "not met",
            "artifact_id": self.artifact_id,
            "claims": [{**signed.to_value(), "reason": reason or None} for signed, reason in pairs],
            "missing": list(self.missing),
        }


def judge_artifact(container: Container, trust: TrustPolicy) -> ArtifactVerdict:
    """The verdict on an artifact, everything else of which holds.

    Raises:
        VerificationError: It does not hold, or a signature by a trusted key is forged.
    """
    report = verify_container(container, trust=None)
    attestations = {path: container.attestation(path) for path in container.attestations}
    digests = Digests.of(container.manifest_bytes)
    signed = check_attestations(attestations, container.manifest, digests, trust)
    return ArtifactVerdict(
        artifact_id=report.artifact_id,
        signatures=signed,
        reasons=tuple(why_not(one, trust) for one in signed),
        missing=tuple(
            f"{error.reason}: {error.expected}; there is: {error.actual}"
            for error in shortfalls(signed, trust)
        ),
    )
