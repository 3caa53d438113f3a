"""What an export reads: the manifest of an artifact, and the model that it lists (EXPORT-1).

The source that an export names is the digest of the manifest that lies beside the model, and every
file of the model is compared with it. So an export cannot name an artifact that it is not of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

from kolm_build.core.archive import MANIFEST
from kolm_build.core.manifest import Manifest, ManifestMember, artifact_id
from kolm_build.core.request import StepRequest
from kolm_build.errors import ContentError, InvalidRecordError
from kolm_build.steps._files import files_of, input_folder

SOURCE = "kolm.source"
"""The key under which each format names the artifact."""

_MODEL = "model/"
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """An artifact's manifest and model.

    Attributes:
        id: ``sha256:<hex>`` of the manifest.
        manifest: What it says.
        manifest_file: Where it is.
        model: The folder of the model.
    """

    id: str
    manifest: Manifest
    manifest_file: Path
    model: Path

    @classmethod
    def read(cls, request: StepRequest) -> Self:
        """The artifact in the input `artifact`.

        Raises:
            InvalidRecordError: There is no manifest, or a bad one, or the model has an adapter
                beside its weights.
            ContentError: The model is not the one that the manifest lists.
        """
        folder = input_folder(request, "artifact")
        file = folder / MANIFEST
        if not file.is_file():
            raise InvalidRecordError(
                "a file is missing", where="inputs.artifact", expected=MANIFEST
            )
        data = file.read_bytes()
        manifest = Manifest.decode(data)
        _check_plain(manifest)
        _check(manifest, folder / _MODEL)
        return cls(
            id=artifact_id(data),
            manifest=manifest,
            manifest_file=file,
            model=folder / _MODEL,
        )

    @property
    def members(self) -> tuple[tuple[str, ManifestMember], ...]:
        """The model's files: path below the model's folder, and member; sorted."""
        return tuple(_members(self.manifest))


def digest_of(file: Path) -> str:
    """``sha256:<hex>`` of the bytes of `file`."""
    hasher = sha256()
    with file.open("rb", buffering=0) as handle:
        while piece := handle.read(_PIECE_BYTES):
            hasher.update(piece)
    return f"sha256:{hasher.hexdigest()}"


def _members(manifest: Manifest) -> Iterator[tuple[str, ManifestMember]]:
    for member in manifest.members:
        if member.path.startswith(_MODEL):
            yield member.path.removeprefix(_MODEL), member


def _check_plain(manifest: Manifest) -> None:
    """No format has a place for an adapter beside the weights; the base alone is another model."""
    if manifest.adapter is not None:
        raise InvalidRecordError(
            "a model with an adapter beside its weights cannot be exported",
            file=MANIFEST,
            where="adapter",
            actual=manifest.adapter.kind,
            advice="`kolm run` answers with it.",
        )


def _check(manifest: Manifest, model: Path) -> None:
    expected = {path: member.sha256 for path, member in _members(manifest)}
    found = {path: digest_of(model / path) for path in files_of(model)}
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            raise ContentError(
                "the model is not the one that the manifest lists",
                file=_MODEL + path,
                expected=expected.get(path, "not listed"),
                actual=found.get(path, "missing"),
            )
