"""Local sources: files and folders beside the recipe, hashed and kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from kolm_build.core.digest import Digest
from kolm_build.core.lock import MAX_LISTED_FILES, Lock, LockedFile, LockedInput
from kolm_build.core.recipe import Recipe
from kolm_build.core.sections import FORMATS
from kolm_build.core.source import PATH, Source
from kolm_build.core.tree import File, Folder
from kolm_build.errors import InvalidRecordError, StaleLockError
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.project import shown_path
from kolm_build.surfaces.story import local_inputs

_ADVICE = "Run `kolm lock`, and look at `kolm lock diff`."


def local_path(root: Path, source: str) -> Path:
    """Where the local source `source` of the project in `root` lies.

    Raises:
        InvalidRecordError: There is nothing.
    """
    path = root / source.removeprefix(PATH)
    if not path.exists():
        raise InvalidRecordError(
            "a source that is not there",
            file=shown_path(path),
            advice=f"The recipe names {source}.",
        )
    return path


def locked_input(source: Source, tree: Digest, store: LocalStore) -> LockedInput:
    """The lock's entry for `source`, whose content `tree` is in the store."""
    files = sorted(_files(tree, store, ""), key=lambda file: file.path)
    return LockedInput(
        name=source.name,
        kind=source.kind,
        source=source.text,
        licence=source.licence,
        tree=tree,
        file_count=len(files),
        size_bytes=sum(file.size_bytes for file in files),
        files=tuple(files) if len(files) <= MAX_LISTED_FILES else (),
    )


def check_rows(recipe: Recipe, inputs: Iterable[LockedInput], *, file: str) -> None:
    """Refuse rows of a recipe that no script makes and that are not one file of their format.

    Args:
        recipe: The recipe.
        inputs: What its sources are.
        file: The recipe's name, for errors.

    Raises:
        InvalidRecordError: They are not.
    """
    if recipe.pipeline is None:
        return
    sections = {"data": ("data", recipe.pipeline.data)}
    sections |= {f"data-{name}": (f"sets.{name}", rows) for name, rows in recipe.pipeline.sets}
    for locked in inputs:
        section, rows = sections.get(locked.name, ("", None))
        if rows is not None and rows.origin.script is None and locked.files:
            _check_format(rows.format, locked, file=file, where=f"{section}.format")


def _check_format(form: str, locked: LockedInput, *, file: str, where: str) -> None:
    names = [one.path for one in locked.files]
    found = [name for name in names if name.lower().endswith(f".{form}")]
    if len(found) == 1:
        return
    raise InvalidRecordError(
        "the rows are not one file of this format",
        file=file,
        where=where,
        expected=f"one file named *.{form}",
        actual=f"{', '.join((found or names)[:8])} of {locked.source}",
        advice=_advice_on_rows(names, found),
    )


def _advice_on_rows(names: list[str], found: list[str]) -> str:
    if found:
        return "Name one file in `from`."
    other = next((one for one in FORMATS for name in names if name.lower().endswith(f".{one}")), "")
    return f'Write format = "{other}".' if other else "Rename the file by what it holds."


def keep_local_inputs(root: Path, lock: Lock, store: LocalStore, *, file: str) -> None:
    """Make the store hold the local inputs of `lock`, which must have the bytes it names.

    Args:
        root: The project's folder.
        lock: Its lock.
        store: Where they are kept.
        file: The lock's name, for errors.

    Raises:
        StaleLockError: One has changed since it was locked; the error names the file.
    """
    for locked in local_inputs(lock):
        path = local_path(root, locked.source)
        if store.tree_of_path(path) != locked.tree:
            raise _stale(path, locked, store.ingest(path), store, lock_name=file)
        if not store.pin([locked.tree]):
            store.ingest(path)


def _stale(
    path: Path, locked: LockedInput, found: Digest, store: LocalStore, *, lock_name: str
) -> StaleLockError:
    """The error that names the first file that is not what it was."""
    before = {file.path: file for file in locked.files}
    after = {file.path: file for file in _files(found, store, "")}
    for name in sorted(before.keys() | after.keys()) if before else ():
        old, new = before.get(name), after.get(name)
        if old != new:
            what = "is new" if old is None else "is gone" if new is None else "has changed"
            place = path / name if path.is_dir() else path
            return StaleLockError(
                f"{what} since it was locked",
                file=shown_path(place),
                where=f"input {locked.name} of {lock_name}",
                expected="no such file" if old is None else str(old.b3),
                actual="no such file" if new is None else str(new.b3),
                advice=_ADVICE,
            )
    return StaleLockError(
        "has changed since it was locked",
        file=shown_path(path),
        where=f"input {locked.name} of {lock_name}",
        expected=str(locked.tree),
        actual=str(found),
        advice=_ADVICE,
    )


def _files(tree: Digest, store: LocalStore, prefix: str) -> Iterator[LockedFile]:
    for name, node in store.tree(tree).entries:
        if isinstance(node, File):
            yield LockedFile(
                path=prefix + name, size_bytes=node.size_bytes, b3=node.b3, sha256=node.sha256
            )
        elif isinstance(node, Folder):
            yield from _files(node.tree, store, f"{prefix}{name}/")
