"""From an artifact to what other programs load: an export as a derivation, and its place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
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
from kolm_build.surfaces.placing import check_place, placed


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
    force: bool,
    kept: Sequence[Path],
    store: LocalStore,
    options: Options,
    on_event: OnEvent,
) -> Exported:
    """Make the export of `artifact` to `form` and put it under `dest`.

    Args:
        artifact: The artifact; it is verified first.
        form: The format.
        dest: Where it goes; None for the artifact's name and the format's suffix, here.
        force: Whether what is there is replaced.
        kept: Folders that are not replaced, nor what holds them.
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
        check = partial(_check_place, dest, form, force=force, kept=kept)
        check()
        content = content_of(container.manifest, manifest_bytes)
        if not store.has_tree(content):
            _keep(container, content, store)
    derivation, made = _made(form, content, store, options, on_event)
    with placed(dest, check) as place:
        _write(made, place, form, store)
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


def _check_place(dest: Path, form: Format, *, force: bool, kept: Sequence[Path]) -> None:
    """Refuse a place that is not free; an empty folder is free for a folder."""
    is_empty = form.is_folder and dest.is_dir() and not any(dest.iterdir())
    check_place(dest, force=force or is_empty, kept=kept)


def _write(made: Digest, place: Path, form: Format, store: LocalStore) -> None:
    """Write the tree `made`, or its one file, to `place`."""
    if form.is_folder:
        store.materialise(made, place)
        return
    ((name, _),) = store.tree(made).entries
    store.materialise_file(made, name, place)


def _size_bytes(path: Path) -> int:
    files = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
