"""Verifying an artifact, offline, with the standard library and `cryptography` (spec/verify.md).

The container and the manifest come first; then threads hash the large members while this thread
checks the small ones, the attestations, and every figure against its evidence. Nothing is
believed because the artifact says so, and what cannot be checked here is listed as such.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from kolm_build.attest.container import Container, Hashing
from kolm_build.core.manifest import Manifest
from kolm_build.core.safetensors import MAX_HEADER_BYTES, PREFIX_BYTES
from kolm_build.errors import EvidenceError

if TYPE_CHECKING:
    from kolm_build.attest.attestation import Signed
    from kolm_build.attest.trust import TrustPolicy

CONFIGS = frozenset(
    {
        "model/adapter_config.json",
        "model/base.json",
        "model/config.json",
        "model/tokenizer_config.json",
    }
)
WEIGHTS_SUFFIX = ".safetensors"
MAX_EVIDENCE_BYTES = 1 << 28

_HEAD_BYTES = PREFIX_BYTES + MAX_HEADER_BYTES
_EVIDENCE = ("build/derivations/", "build/kolm.", "eval/", "sbom/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What verifying found; the artifact holds.

    Attributes:
        artifact_id: ``sha256:<hex>`` of the manifest.
        manifest_b3: ``b3:<hex>`` of it.
        manifest: What the artifact claims, all of it checked but for `not_evidenced`.
        size_bytes: The file's size.
        signatures: The attestations.
        trusted: Whether the trust policy is met; false where none was given.
        evidenced: What was recomputed.
        not_evidenced: What can not be recomputed here, and what would.
    """

    artifact_id: str
    manifest_b3: str
    manifest: Manifest
    size_bytes: int
    signatures: tuple[Signed, ...]
    trusted: bool
    evidenced: tuple[str, ...]
    not_evidenced: tuple[str, ...]

    def to_value(self) -> dict[str, object]:
        """The report as a JSON object."""
        how, adapter = self.manifest.quantisation, self.manifest.adapter
        return {
            "artifact_id": self.artifact_id,
            "manifest_b3": self.manifest_b3,
            "name": self.manifest.name,
            "size_bytes": self.size_bytes,
            "members": len(self.manifest.members),
            "weights_id": self.manifest.weights_id,
            "numerics": self.manifest.numerics,
            "licence": self.manifest.licence,
            "kscore": dict(self.manifest.kscore),
            **({} if how is None else {"quantisation": how.to_value()}),
            **({} if adapter is None else {"adapter": adapter.to_value()}),
            "signatures": [signed.to_value() for signed in self.signatures],
            "trusted": self.trusted,
            "evidenced": list(self.evidenced),
            "not_evidenced": list(self.not_evidenced),
        }


def verify_artifact(path: Path, *, trust: TrustPolicy | None) -> Report:
    """What the artifact in the file `path` is, if it is what it says.

    Args:
        path: The file.
        trust: Whom to believe. Without it signatures are listed and none of them counts.

    Raises:
        VerificationError: Something in it does not hold; the class says what kind of thing.
        UntrustedError: Everything holds, and too few trusted principals vouch for it.
    """
    with Container.open(path) as container:
        return verify_container(container, trust=trust)


def verify_container(container: Container, *, trust: TrustPolicy | None) -> Report:
    """`verify_artifact` on an open artifact."""
    with Verification(container) as verification:
        return verification.report(trust)


class Verification:
    """`verify_container` in two parts: as a context, threads hash the large members already.

    What has to be imported and read before there is a trust policy costs no time so.

    Args:
        container: The open artifact.
    """

    def __init__(self, container: Container) -> None:
        self._container = container
        self._small = sorted(path for path in container.entries if _is_evidence(path))
        large = container.entries.keys() - self._small
        self._hashing = Hashing(container, large, keep=_kept)

    def __enter__(self) -> Self:
        self._hashing.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hashing.__exit__(*error)

    def report(self, trust: TrustPolicy | None) -> Report:
        """What the artifact is, if it is what it says, to those who trust whom `trust` does."""
        # Imported while the threads hash: a tenth of a second that costs nothing.
        from kolm_build.attest import attestation, evidence, model

        container, manifest = self._container, self._container.manifest
        files = {path: _small(container, path) for path in self._small}
        attestations = {path: container.attestation(path) for path in container.attestations}
        self._hashing.raise_found()
        digests = attestation.Digests.of(container.manifest_bytes)
        signatures = attestation.check_attestations(attestations, manifest, digests, trust)
        claims = evidence.check_evidence(files, manifest)
        counted = model.check_model(self._hashing.result(), manifest, claims)
        if trust is not None:
            attestation.check_thresholds(signatures, trust)
        return Report(
            artifact_id=f"sha256:{digests.sha256}",
            manifest_b3=f"b3:{digests.b3}",
            manifest=manifest,
            size_bytes=container.size,
            signatures=signatures,
            trusted=trust is not None,
            evidenced=(*claims.evidenced, *([model.COUNTED] if counted else [])),
            not_evidenced=(*claims.not_evidenced, *([] if counted else [model.COUNTED])),
        )


def _is_evidence(path: str) -> bool:
    """Whether the whole member is read; sources and code are hashed like weights."""
    return path.startswith(_EVIDENCE)


def _kept(path: str) -> int:
    """How many of a member's first bytes are looked at, beyond its digest."""
    if path.endswith(WEIGHTS_SUFFIX):
        return _HEAD_BYTES
    return MAX_EVIDENCE_BYTES if path in CONFIGS else 0


def _small(container: Container, path: str) -> bytes:
    size = container.entries[path].size
    if size > MAX_EVIDENCE_BYTES:
        raise EvidenceError(
            "too large to be checked",
            file=path,
            expected=f"at most {MAX_EVIDENCE_BYTES} bytes",
            actual=f"{size} bytes",
        )
    return container.checked(path, size)
