"""From a project to a pack, and from a pack to a project folder (spec/kolmpack.md)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kolm_build.core.archive import ATTESTATIONS
from kolm_build.core.digest import Blob, Digest
from kolm_build.core.instantiation.instance import PACKAGE
from kolm_build.core.kolmpack import Head, PackKind
from kolm_build.core.lock import Lock, parse_lock
from kolm_build.core.source import PATH
from kolm_build.core.tree import File, Folder
from kolm_build.engine.stored import check_site, find
from kolm_build.engine.stored import read as read_stored
from kolm_build.errors import (
    CorruptObjectError,
    KolmError,
    MachineMismatchError,
    PackError,
    PackIncompleteError,
    UsageError,
)
from kolm_build.store.local import LocalStore
from kolm_build.store.packer import Have, Packing, Wanted
from kolm_build.store.packfile import PackFile
from kolm_build.store.unpacker import Delivered
from kolm_build.surfaces.building import Prepared, planned
from kolm_build.surfaces.places import LOCK, RECIPE
from kolm_build.surfaces.results import Targets
from kolm_build.surfaces.story import local_inputs
from kolm_build.surfaces.trees import keep

OUTPUTS = "kolm.outputs"
TRUST = "trust.toml"
FILES = (RECIPE, LOCK, OUTPUTS, TRUST)
"""The files of a project that a pack holds, under these names whatever they were called."""


def wanted_of(
    prepared: Prepared,
    targets: Targets,
    store: LocalStore,
    *,
    trust: Path | None,
    artifact: Path | None,
    without_outputs: bool,
) -> Wanted:
    """What a pack of `targets` holds; the project's own files are in `store` afterwards.

    Args:
        prepared: The project, its inputs and code in the store.
        targets: What is delivered.
        store: The store.
        trust: The trust file that travels; None for none.
        artifact: The signed artifact whose attestations travel; None for none.
        without_outputs: Leave out what can be built.
    """
    project = prepared.project
    found = {
        RECIPE: project.recipe_text,
        LOCK: project.lock_file.read_bytes(),
        OUTPUTS: _bytes(project.outputs_file),
        TRUST: None if trust is None else trust.read_bytes(),
    }
    files = {name: data for name, data in found.items() if data is not None}
    for derivation in prepared.instance.nodes.values():
        if not store.has_derivation(derivation.digest):
            store.put_derivation(derivation)
    return Wanted(
        name=project.recipe.name,
        outputs=targets,
        project=keep({**files, **_attestations(artifact)}, store),
        environments=_stored(prepared, store),
        without_outputs=without_outputs,
    )


def _stored(prepared: Prepared, store: LocalStore) -> Mapping[Digest, Digest]:
    """The environments of the project's nodes that `store` holds."""
    named = {node.environment for node in prepared.instance.nodes.values()}
    found = {one: find(store, one) for one in named if one is not None}
    return {one: stored.tree for one, stored in found.items() if stored is not None}


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _attestations(artifact: Path | None) -> Mapping[str, bytes]:
    if artifact is None:
        return {}
    from kolm_build.attest.container import Container

    with Container.open(artifact) as container:
        return {path: container.attestation(path) for path in container.attestations}


def have_of(other: Path) -> Have:
    """What somebody has who has `other`: an earlier pack, or a store.

    Raises:
        PackError: It is a file and no pack.
        StoreFormatError: It is a folder and no store.
    """
    if not other.is_dir():
        with PackFile.open(other) as file:
            held = {entry[:2] for entry in (*file.head.objects, *file.head.needs)}
        whole = {digest for kind, digest in held if kind is PackKind.JOIN}
        return lambda kind, digest: (
            (kind, digest) in held or (kind is PackKind.BLOB and digest in whole)
        )
    with LocalStore.open(other, read_only=True) as store:
        trees, blobs = store.contents()
    return lambda kind, digest: digest in (trees if kind is PackKind.TREE else blobs)


def write(packing: Packing, dest: Path, store: LocalStore, on_bytes: Callable[[int], None]) -> None:
    """Write a pack to the new file `dest`.

    Args:
        packing: The pack.
        dest: The file.
        store: Where its objects are.
        on_bytes: Told how many bytes are written.
    """
    done = 0
    with dest.open("xb") as file:

        def put(data: bytes | memoryview) -> None:
            nonlocal done
            file.write(data)
            done += len(data)
            on_bytes(done)

        store.write_pack(packing, put)


def check_environments(delivered: Delivered) -> None:
    """Refuse a pack whose environments are not what they are called.

    Raises:
        PackIncompleteError: One is not.
    """
    for environment, tree in delivered.environments:
        try:
            check_site(delivered, read_stored(delivered, tree, expected=environment))
        except (CorruptObjectError, MachineMismatchError) as error:
            raise PackIncompleteError(
                "an environment of the pack is not what it is called",
                where=f"environment {environment}",
                expected=error.expected,
                actual=error.actual or error.reason,
            ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A project folder made from a pack.

    Attributes:
        folder: The folder.
        files: What is in it, sorted.
        artifact: The artifact in it; None where the pack does not hold it.
        elsewhere: Local sources that lie outside the project's folder: they are in the store.
    """

    folder: Path
    files: tuple[str, ...]
    artifact: Path | None
    elsewhere: tuple[str, ...]


def check_free(folder: Path) -> None:
    """Refuse a folder for a project that holds something already.

    Raises:
        UsageError: It does.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("the folder for the project is not empty", file=str(folder),
                         advice="Name a new folder with --project.")  # fmt: skip


def restore(head: Head, folder: Path, store: LocalStore) -> Restored:
    """Write the project of an imported pack into `folder`, all of it or nothing.

    Args:
        head: The pack's head; its objects are in the store.
        folder: A new or empty folder.
        store: The store.

    Raises:
        UsageError: `folder` is not empty.
    """
    check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name:
        made = Path(name, "project")
        made.mkdir()
        files = _project_files(head.project, store)
        for file in FILES:
            if file in files:
                (made / file).write_bytes(files[file])
        elsewhere = _restore_sources(_lock(files), made, store)
        artifact = _restore_artifact(head, files, made, store)
        written = sorted(
            path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()
        )
        if folder.exists():
            folder.rmdir()
        made.rename(folder)
    return Restored(
        folder=folder,
        files=tuple(written),
        artifact=None if artifact is None else folder / artifact,
        elsewhere=elsewhere,
    )


def _project_files(tree: Digest, store: LocalStore, prefix: str = "") -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for name, node in store.tree(tree).entries:
        if isinstance(node, Folder):
            files |= _project_files(node.tree, store, f"{prefix}{name}/")
        elif isinstance(node, File):
            files[prefix + name] = store.read_blob(node.b3)
    return files


def _lock(files: Mapping[str, bytes]) -> Lock:
    try:
        return parse_lock(files[LOCK].decode(), file=LOCK)
    except (KeyError, UnicodeDecodeError):
        raise PackError("the pack's project has no readable lock", file=LOCK) from None


def _restore_sources(lock: Lock, made: Path, store: LocalStore) -> tuple[str, ...]:
    """Put the local sources where the recipe says; those that lie outside it are named.

    What is above comes first: of two sources one may lie in the other.
    """
    elsewhere = set()
    for path, tree in sorted({(one.source, one.tree) for one in local_inputs(lock)}):
        parts = PurePosixPath(path.removeprefix(PATH)).parts
        place = made / Path(*parts)
        if ".." in parts or not parts:
            elsewhere.add(f"{path} {tree}")
        elif not place.exists():
            _restore_source(tree, place, store)
        elif store.tree_of_path(place) != tree:
            elsewhere.add(f"{path} {tree}")
    return tuple(sorted(elsewhere))


def _restore_source(tree: Digest, place: Path, store: LocalStore) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with store.scratch() as scratch:
        store.materialise(tree, scratch / "tree")
        entries = store.tree(tree).entries
        is_file = [(name, type(node)) for name, node in entries] == [(place.name, File)]
        source = scratch / "tree"
        _copy(source / place.name if is_file else source, place)


def _copy(source: Path, place: Path) -> None:
    """Copy a file or folder that its owner may then change."""
    import shutil

    if source.is_dir():
        shutil.copytree(source, place, symlinks=True, copy_function=_copy_file)
    else:
        _copy_file(str(source), str(place))


def _copy_file(source: str, place: str) -> str:
    import shutil

    shutil.copyfile(source, place)
    if os.access(source, os.X_OK):
        Path(place).chmod(0o755)
    return place


def _restore_artifact(
    head: Head, files: Mapping[str, bytes], made: Path, store: LocalStore
) -> str | None:
    """Write the artifact, with the attestations that came beside it; its name in the folder."""
    tree = _package(head, store)
    if tree is None or not store.has_tree(tree):
        return None
    from kolm_build.attest.sign import attach

    name = f"{head.name}.kolm"
    with store.scratch() as scratch:
        store.materialise(tree, scratch / "out")
        if not (scratch / "out" / name).is_file():
            return None
        kept = {path: data for path, data in files.items() if path.startswith(ATTESTATIONS)}
        attach(scratch / "out" / name, made / name, kept)
    return name


def _package(head: Head, store: LocalStore) -> Digest | None:
    for target in head.targets:
        if store.derivation(target.derivation).name == PACKAGE:
            return target.content
    return None


def attested(
    prepared: Prepared, targets: Targets, store: LocalStore, given: Path | None
) -> Path | None:
    """The artifact file whose attestations travel: the project's own, if it is what was built.

    Args:
        prepared: The project.
        targets: What is delivered.
        store: The store.
        given: What the command line names; it must be the artifact that is delivered.

    Raises:
        UsageError: `given` is another artifact, or none is delivered.
    """
    path = given or prepared.project.artifact_file(None)
    if given is None and not path.is_file():
        return None
    package = _built_package(prepared, targets, store)
    if package is not None:
        name = f"{prepared.project.recipe.name}.kolm"
        with store.scratch() as scratch:
            store.materialise(package, scratch / "out")
            if _artifact_id(scratch / "out" / name) == _artifact_id(path):
                return path
    if given is None:
        return None
    raise UsageError(
        "it is not the artifact that is delivered",
        file=str(given),
        advice="Build it again, or leave --artifact out.",
    )


def _built_package(prepared: Prepared, targets: Targets, store: LocalStore) -> Digest | None:
    derivation = prepared.instance.digests.get(PACKAGE)
    wanted = {one for one in targets.values() if one.derivation == derivation}
    known = planned(prepared, targets, store, check=False).contents
    found = next((known[one] for one in wanted if one in known), None)
    return found if found is not None and store.has_tree(found) else None


def _artifact_id(path: Path) -> str | None:
    from kolm_build.attest.container import Container

    try:
        with Container.open(path) as container:
            return str(Blob.of(container.manifest_bytes).sha256)
    except KolmError:
        return None
