"""Another state of a project: a lock file somewhere, or one that git remembers."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kolm_build.core.instantiation.instance import Instance
from kolm_build.core.lock import Lock, check, parse_lock
from kolm_build.core.recipe import parse_recipe
from kolm_build.errors import InvalidRecordError, KolmError, UsageError
from kolm_build.surfaces.lookup import instance_of
from kolm_build.surfaces.places import LOCK, RECIPE
from kolm_build.surfaces.project import Project, read_lock, shown_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """A lock, and the recipe it was made from where that can be had.

    Attributes:
        title: What the user calls it.
        root: The folder its recipe lies in.
        lock: The lock.
        recipe_text: The recipe's bytes; None where there is none that belongs to the lock.
    """

    title: str
    root: Path
    lock: Lock
    recipe_text: bytes | None

    def instance(self) -> Instance | None:
        """What it describes; None without its recipe, or of another kolm's steps."""
        if self.recipe_text is None:
            return None
        try:
            recipe = parse_recipe(self.recipe_text.decode(), numerics_class=self.lock.numerics.cls)
            check(recipe, self.lock)
            project = Project(
                root=self.root,
                recipe=recipe,
                recipe_text=self.recipe_text,
                lock_file=self.root / LOCK,
            )
            return instance_of(project, self.lock)
        except (KolmError, UnicodeDecodeError):
            return None


def read_revision(text: str | None, root: Path, *, lock: Path, default: str | None) -> Revision:
    """The revision that `text` names: a lock file, else a git revision.

    Args:
        text: What the user says.
        root: The project's folder.
        lock: The project's lock.
        default: The git revision that nothing stands for; None for the files that are here.

    Raises:
        UsageError: There is none of that name.
    """
    name = text or default
    if name is None:
        return _of_file(lock, root)
    if text is not None and Path(text).exists():
        path = Path(text)
        return _of_file(path / LOCK if path.is_dir() else path, root)
    file = os.path.relpath(lock, root)
    data = _git_file(name, file, root)
    return Revision(
        title=name,
        root=root,
        lock=parse_lock(_decoded(data, f"{name}:{file}"), file=f"{name}:{file}"),
        recipe_text=_git_file(name, RECIPE, root),
    )


def _of_file(path: Path, root: Path) -> Revision:
    beside = path.parent / RECIPE
    recipe = beside if beside.is_file() else root / RECIPE
    return Revision(
        title=shown_path(path),
        root=path.parent,
        lock=read_lock(path),
        recipe_text=recipe.read_bytes() if recipe.is_file() else None,
    )


def _git_file(revision: str, name: str, root: Path) -> bytes:
    # A lock may be a link to a folder of locks: git would show the link and not the lock.
    place = (root / name).resolve() if (root / name).is_symlink() else root / name
    at = f"{revision}:./{place.name}"
    command = ["git", "-C", str(place.parent), "show", "--end-of-options", at]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        done = None
    if done is None or done.returncode:
        said = done.stderr.decode(errors="replace").strip() if done else "there is no git here"
        raise UsageError(
            f"neither a lock file nor a git revision with a {name}",
            file=revision,
            actual=said.splitlines()[0] if said else None,
            advice="Name two lock files: kolm lock diff A B.",
        )
    return done.stdout


def _decoded(data: bytes, file: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidRecordError("not UTF-8", file=file) from None
