"""What comes of a build: the artifact file, the expected outputs, the root that keeps it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.core.closure import closure
from kolm_build.core.derivation import OutputInput
from kolm_build.core.digest import Digest
from kolm_build.core.instantiation.instance import PACKAGE, Instance
from kolm_build.core.outputs import (
    ANY_PLATFORM,
    ExpectedOutput,
    Outputs,
    parse_outputs,
    render_outputs,
)
from kolm_build.engine.builder import OPEN_LEVEL
from kolm_build.engine.scheduler import Realised
from kolm_build.errors import NotReproducibleError
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.building import Prepared
from kolm_build.surfaces.files import sync_folder, write_whole
from kolm_build.surfaces.project import Project, shown_path

if TYPE_CHECKING:
    from kolm_build.attest.keys import SigningKey
    from kolm_build.core.manifest import Quantisation

Targets = Mapping[str, OutputInput]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A build that went well.

    Attributes:
        prepared: What was built.
        wanted: What was wanted of it.
        realised: What came out.
        store: Where it is.
    """

    prepared: Prepared
    wanted: Targets
    realised: Realised
    store: LocalStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """An artifact in its place.

    Attributes:
        path: The file.
        artifact_id: ``sha256:<hex>`` of its manifest.
        manifest_b3: ``b3:<hex>`` of it.
        kscore: Its figures, as the manifest says them.
        quantisation: How it was quantised, and its figures in full precision; None where it was
            not.
        signed_by: The id of the key that signed; None for an unsigned one.
    """

    path: Path
    artifact_id: str
    manifest_b3: str
    kscore: Mapping[str, str]
    quantisation: Quantisation | None
    signed_by: str | None

    def to_value(self) -> dict[str, object]:
        """The event as a JSON object."""
        quantised = self.quantisation
        return {
            "b3": self.manifest_b3,
            "event": "artifact",
            "id": self.artifact_id,
            "kscore": dict(self.kscore),
            "path": str(self.path),
            "signed_by": [self.signed_by] if self.signed_by else [],
            **({} if quantised is None else {"quantisation": quantised.to_value()}),
        }


def write_artifact(
    package: Digest, dest: Path, *, name: str, key: SigningKey | None, store: LocalStore
) -> Written:
    """Put the artifact in the tree `package` under `dest`, whole or not at all.

    Args:
        package: The output of the node `package`.
        dest: The file.
        name: The artifact's name in the tree, without its suffix.
        key: What signs it; None leaves it unsigned.
        store: Has the tree.
    """
    with tempfile.TemporaryDirectory(prefix=f".{dest.name}.", dir=dest.parent) as folder:
        store.materialise(package, Path(folder, "out"))
        made = Path(folder, "out", f"{name}.kolm")
        made.parent.chmod(0o755)
        if key is None:
            made.chmod(0o644)
            made.replace(dest)
            sync_folder(dest.parent)
        else:
            from kolm_build.attest.sign import sign_artifact

            sign_artifact(made, dest, key=key)
    return _described(dest, key)


def _described(path: Path, key: SigningKey | None) -> Written:
    from kolm_build.attest.container import Container
    from kolm_build.core.digest import Blob

    with Container.open(path) as container:
        blob = Blob.of(container.manifest_bytes)
        return Written(
            path=path,
            artifact_id=str(blob.sha256),
            manifest_b3=str(blob.b3),
            kscore=container.manifest.kscore,
            quantisation=container.manifest.quantisation,
            signed_by=None if key is None else key.public.keyid,
        )


def package_of(finished: Finished) -> Digest | None:
    """The content of the package; None where it was not wanted."""
    digest = finished.prepared.instance.digests.get(PACKAGE)
    for output in finished.wanted.values():
        if output.derivation == digest:
            return finished.realised.contents[output]
    return None


def tainted(finished: Finished) -> tuple[str, ...]:
    """The nodes of which some content was never built closed in."""
    return tuple(
        name
        for name, node in finished.prepared.instance.nodes.items()
        if not node.is_fixed
        and any(OPEN_LEVEL in _levels(finished, name, output) for output, _ in node.outputs)
    )


def _levels(finished: Finished, name: str, output: str) -> frozenset[object]:
    """How an output's content was built; the openly built alone where nobody did better."""
    digest = finished.prepared.instance.digests[name]
    key = finished.realised.keys.get(digest)
    content = finished.realised.contents.get(OutputInput(derivation=digest, output=output))
    if key is None:
        return frozenset()
    levels = frozenset(
        claim.circumstances.get("sandbox")
        for claim in finished.store.realisations(key, output)
        if claim.realisation.content == content
    )
    return levels if levels == {OPEN_LEVEL} else levels - {OPEN_LEVEL}


def expected_outputs(project: Project) -> Outputs:
    """What `kolm.outputs` says; nothing where there is no such file."""
    path = project.outputs_file
    if not path.exists():
        return Outputs()
    return parse_outputs(path.read_text(encoding="utf-8"), file=shown_path(path))


def check_outputs(finished: Finished) -> None:
    """Refuse results that are not what `kolm.outputs` names.

    Raises:
        NotReproducibleError: One is not.
    """
    project = finished.prepared.project
    known = expected_outputs(project)
    for entry in _entries(finished):
        expected = known.find(entry.target, entry.output, entry.platform, entry.derivation)
        if expected is not None and expected != entry.tree:
            raise NotReproducibleError(
                "the result is not what was recorded for this derivation",
                file=shown_path(project.outputs_file),
                where=f"{entry.target}.{entry.output}",
                expected=str(expected),
                actual=str(entry.tree),
                advice="`kolm diff` shows where the two differ, if both are in the store.",
            )


def record_outputs(finished: Finished) -> None:
    """Write the results into `kolm.outputs`."""
    project = finished.prepared.project
    outputs = expected_outputs(project).with_entries(_entries(finished))
    write_whole(project.outputs_file, render_outputs(outputs).encode())


def _entries(finished: Finished) -> Iterator[ExpectedOutput]:
    return entries_of(finished.prepared.instance, finished.wanted, finished.realised.contents)


def entries_of(
    instance: Instance, wanted: Targets, contents: Mapping[OutputInput, Digest]
) -> Iterator[ExpectedOutput]:
    """The entries of `kolm.outputs` for `wanted`."""
    for output in wanted.values():
        yield ExpectedOutput(
            target=instance.derivations[output.derivation].name,
            output=output.output,
            platform=platform_above(instance, output.derivation),
            derivation=output.derivation,
            tree=contents[output],
        )


def platform_above(instance: Instance, derivation: Digest) -> str:
    """The platform that a derivation or anything above it is pinned to, as text."""
    nodes = instance.derivations

    def needs(digest: Digest) -> list[Digest]:
        return [need.derivation for need in nodes[digest].needs]

    for digest in closure([derivation], needs):
        platform = nodes[digest].platform
        if platform is not None:
            return str(platform)
    return ANY_PLATFORM
