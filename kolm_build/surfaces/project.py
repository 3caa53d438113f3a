"""A project: the folder of one recipe, and the files that stand beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kolm_build.core.lock import Lock, parse_lock
from kolm_build.core.numerics import PORTABLE
from kolm_build.core.recipe import Recipe, parse_recipe
from kolm_build.errors import InvalidRecordError, StaleLockError
from kolm_build.surfaces.places import RECIPE, StrPath, find_root, lock_file, outputs_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A folder with a recipe that could be read.

    Attributes:
        root: The folder, absolute.
        recipe: The recipe.
        recipe_text: The bytes it was read from.
        lock_file: Where its lock is, or will be.
    """

    root: Path
    recipe: Recipe
    recipe_text: bytes
    lock_file: Path

    @property
    def outputs_file(self) -> Path:
        """Where the expected outputs are."""
        return Path(outputs_file(self.lock_file))

    def artifact_file(self, given: StrPath | None) -> Path:
        """Where the artifact goes: `given`, else beside the recipe."""
        return Path(given) if given is not None else self.root / f"{self.recipe.name}.kolm"


def open_project(
    given: StrPath | None, *, lock: StrPath | None, numerics_class: str | None = None
) -> Project:
    """The project that `given`, or the working folder, is in.

    Args:
        given: Its folder; None to look upwards.
        lock: Its lock; None for `kolm.lock` in the folder.
        numerics_class: What a recipe that names no class means; None for what is locked.
    """
    root = Path(find_root(given))
    data = (root / RECIPE).read_bytes()
    file = shown_path(root / RECIPE)
    place = Path(lock_file(lock, root))
    unnamed = numerics_class or _locked_class(place)
    recipe = parse_recipe(_text(data, file), file=file, numerics_class=unnamed)
    return Project(root=root, recipe=recipe, recipe_text=data, lock_file=place)


def _locked_class(path: Path) -> str:
    """The numerics class that is locked in `path`; where nothing is, that of a new lock."""
    return read_lock(path).numerics.cls if path.exists() else PORTABLE


def read_lock(path: Path) -> Lock:
    """The lock in `path`.

    Raises:
        StaleLockError: There is none.
    """
    file = shown_path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise StaleLockError(
            "nothing is locked yet", file=file, advice="Run `kolm lock` first."
        ) from None
    return parse_lock(_text(data, file), file=file)


def shown_path(path: Path) -> str:
    """`path` as the user would write it: relative where it lies below the working folder."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _text(data: bytes, file: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRecordError(
            "not UTF-8", file=file, where=f"byte {error.start}", actual=repr(data[error.start])
        ) from None
