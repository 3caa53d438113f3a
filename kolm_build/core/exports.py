"""An export: what it reads of an artifact, and its derivation (spec/exports.md)."""

from __future__ import annotations

from collections.abc import Mapping

from kolm_build.core.archive import MANIFEST
from kolm_build.core.derivation import ContentInput, Derivation
from kolm_build.core.digest import Blob, Digest, Sha256
from kolm_build.core.export_formats import Format
from kolm_build.core.manifest import Manifest, ManifestMember
from kolm_build.core.numerics import Numerics
from kolm_build.core.tree import File, Folder, Node, Tree

MODEL = "model/"


def content_of(manifest: Manifest, manifest_bytes: bytes) -> Digest:
    """The digest of what an export of an artifact reads: its manifest and the folder of its model.

    It follows from the manifest, so that an export that was made before is found without reading
    the model.
    """
    blob = Blob.of(manifest_bytes)
    files = {MANIFEST: File(b3=blob.b3, sha256=blob.sha256, size_bytes=blob.size_bytes)}
    for member in members_of(manifest):
        files[member.path] = File(
            b3=Digest.parse(member.b3),
            sha256=Sha256.parse(member.sha256),
            size_bytes=member.size,
        )
    return _tree(files)


def members_of(manifest: Manifest) -> tuple[ManifestMember, ...]:
    """The files of the model."""
    return tuple(member for member in manifest.members if member.path.startswith(MODEL))


def _tree(files: Mapping[str, File]) -> Digest:
    entries: dict[str, Node] = {}
    below: dict[str, dict[str, File]] = {}
    for path, file in files.items():
        name, slash, rest = path.partition("/")
        if slash:
            below.setdefault(name, {})[rest] = file
        else:
            entries[name] = file
    for name, inner in below.items():
        entries[name] = Folder(tree=_tree(inner))
    return Tree.of(entries.items()).digest


def derivation_of(
    form: Format, *, content: Digest, code: Digest, environment: Digest
) -> Derivation:
    """The derivation of an export to `form`.

    Args:
        form: The format.
        content: The digest of what it reads (`content_of`).
        code: The code tree of its step.
        environment: What the step runs in.
    """
    return Derivation(
        name=form.step,
        step=form.step,
        code=code,
        environment=environment,
        params=tuple(sorted(form.params)),
        inputs=(("artifact", ContentInput(content=content)),),
        outputs=(("out", None),),
        numerics=Numerics(cls=form.numerics),
    )
