"""From an artifact to what other programs load: an export as a derivation, and its place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kolm_build.attest.container import Container
from kolm_build.attest.verify import verify_container
from kolm_build.core.archive import MANIFEST
from kolm_build.core.derivation import Derivation, OutputInput
from kolm_build.core.digest import Digest
from kolm_build.core.environment import Environment
from kolm_build.core.export_formats import Format
from kolm_build.core.exports import content_of, derivation_of, members_of
from kolm_build.core.manifest import artifact_id
from kolm_build.core.recipe import DISTRIBUTIONS
from kolm_build.engine.environment import capture
from kolm_build.engine.events import OnEvent
from kolm_build.engine.scheduler import realise
from kolm_build.errors import MachineMismatchError, UsageError
from kolm_build.reading import PIECE_BYTES
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.building import Options, find_environments, make_builder
from kolm_build.surfaces.code import lock_code
from kolm_build.surfaces.files import sync_folder
from kolm_build.surfaces.placing import make_own, put, room_beside


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """An export in its place.

    Attributes:
        path: The file or folder.
        content: The digest of its tree, as the store has it.
        derivation: What describes it.
        artifact_id: The artifact it is of: ``sha256:<hex>``.
        size_bytes: The size of its files.
    """

    path: Path
    content: Digest
    derivation: Digest
    artifact_id: str
    size_bytes: int

    def to_value(self) -> dict[str, object]:
        """The export as a JSON object."""
        return {
            "artifact_id": self.artifact_id,
            "bytes": self.size_bytes,
            "content": str(self.content),
            "derivation": str(self.derivation),
            "path": str(self.path),
        }


def export(
    artifact: Path,
    form: Format,
    dest: Path | None,
    *,
    store: LocalStore,
    options: Options,
    on_event: OnEvent,
) -> Exported:
    """Make the export of `artifact` to `form` and put it under `dest`.

    Args:
        artifact: The artifact; it is verified first.
        form: The format.
        dest: Where it goes; None for the artifact's name and the format's suffix, here.
        store: Keeps what is made; an export that it has is not made again.
        options: How the step runs.
        on_event: Told what happens.

    Raises:
        VerificationError: The artifact does not hold.
        UsageError: Something is at `dest` that may not be replaced.
    """
    with Container.open(artifact) as container:
        verify_container(container, trust=None)
        manifest_bytes = container.manifest_bytes
        dest = dest or Path(f"{container.manifest.name}{form.suffix}")
        _check_place(dest, form)
        content = content_of(container.manifest, manifest_bytes)
        if not store.has_tree(content):
            _keep(container, content, store)
    derivation, made = _made(form, content, store, options, on_event)
    _place(made, dest, form, store)
    return Exported(
        path=dest,
        content=made,
        derivation=derivation.digest,
        artifact_id=artifact_id(manifest_bytes),
        size_bytes=_size_bytes(dest),
    )


def _made(
    form: Format, content: Digest, store: LocalStore, options: Options, on_event: OnEvent
) -> tuple[Derivation, Digest]:
    """The derivation of an export and what comes of it."""
    environment = _environment(form, store)
    code = lock_code((form.step,), store)[form.step]
    derivation = derivation_of(form, content=content, code=code, environment=environment.digest)
    digest = store.put_derivation(derivation)
    wanted = OutputInput(derivation=digest, output="out")
    with find_environments(environment, [store], options=options) as environments:
        realised = realise(
            (wanted,),
            derivations={digest: derivation},
            store=store,
            builder=make_builder(environments, store, options=options),
            on_event=on_event,
        )
    return derivation, realised.contents[wanted]


def _environment(form: Format, store: LocalStore) -> Environment:
    """What is installed here, as far as the export may see it.

    Raises:
        MachineMismatchError: What the format needs is not installed.
    """
    try:
        return capture((*DISTRIBUTIONS, *form.distributions), memo=store)
    except MachineMismatchError as error:
        if form.distributions:
            error.advice = (
                f"{form.step} needs more than training does: pip install kolm-build[onnx]"
            )
        raise


def _keep(container: Container, content: Digest, store: LocalStore) -> None:
    """Take the artifact's manifest and model into `store`."""
    with store.scratch() as scratch:
        folder = scratch / "artifact"
        folder.mkdir()
        (folder / MANIFEST).write_bytes(container.manifest_bytes)
        for member in members_of(container.manifest):
            (folder / member.path).parent.mkdir(parents=True, exist_ok=True)
            _copy(container, member.path, folder / member.path)
        kept = store.ingest(folder)
    if kept != content:
        raise UsageError(
            "the artifact changed while it was read", expected=str(content), actual=str(kept)
        )


def _copy(container: Container, path: str, dest: Path) -> None:
    at, end = (
        container.placed[path].offset,
        container.placed[path].offset + container.entries[path].size,
    )
    with dest.open("xb") as file:
        while at < end and (piece := os.pread(container.fd, min(PIECE_BYTES, end - at), at)):
            at += file.write(piece)


def _check_place(dest: Path, form: Format) -> None:
    """Refuse to replace a folder that holds something, or a folder by a file and the reverse."""
    if form.is_folder:
        free = not dest.exists() or (dest.is_dir() and not any(dest.iterdir()))
    else:
        free = not dest.is_dir()
    if not free:
        raise UsageError(
            "something is there already",
            file=str(dest),
            advice="Name another place with -o, or remove it first.",
        )


def _place(made: Digest, dest: Path, form: Format, store: LocalStore) -> None:
    """Put the tree `made`, or its one file, under `dest`: whole or not at all."""
    with room_beside(dest) as room:
        out = room / "out"
        store.materialise(made, out)
        make_own(out)
        put(out if form.is_folder else next(out.iterdir()), dest, aside=room / "before")
        sync_folder(dest.parent)


def _size_bytes(path: Path) -> int:
    files = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
