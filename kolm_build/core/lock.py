"""Locks: every name of a recipe bound to digests (spec/lock.md).

`kolm.lock` is TOML that people review: sorted blocks, one digest a line, nothing of the machine
or the moment. Locking twice gives the same text, and two branches conflict only where they mean
different things.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from kolm_build.core.digest import Digest, Sha256
from kolm_build.core.environment import Distribution, Environment
from kolm_build.core.fields import Fields
from kolm_build.core.name import parse_entry, parse_label
from kolm_build.core.numerics import PORTABLE, Numerics
from kolm_build.core.quorum import GRADE, RELEASE, parse_grade
from kolm_build.core.recipe import Recipe
from kolm_build.core.toml import read_toml
from kolm_build.core.toml_writer import render
from kolm_build.errors import InvalidRecordError, KolmError, StaleLockError

VERSION = 2
READ = (1, VERSION)
"""The versions that are read. A lock of an earlier one means what it meant then."""

FILE = "kolm.lock"
MAX_LISTED_FILES = 64
"""An input of more files is locked by its tree alone: nobody reviews thousands of lines."""

KINDS = ("weights", "data", "code")

_HEADER = ("Made by `kolm lock` from kolm.toml. Commit it; do not edit it.",)
_ADVICE = "Run `kolm lock`, and look at `kolm lock diff`."


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedFile:
    """A file of an input.

    Attributes:
        path: Its path in the input's tree.
        size_bytes: Its size.
        b3: Its BLAKE3.
        sha256: Its SHA-256.
    """

    path: str
    size_bytes: int
    b3: Digest
    sha256: Sha256

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {
            "path": self.path,
            "bytes": self.size_bytes,
            "b3": str(self.b3),
            "sha256": str(self.sha256),
        }

    @classmethod
    def from_value(cls, value: object) -> LockedFile:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        made = cls(
            path=fields.parsed("path", _file_path),
            size_bytes=_count(fields, "bytes"),
            b3=fields.parsed("b3", Digest.parse),
            sha256=fields.parsed("sha256", Sha256.parse),
        )
        fields.done()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedInput:
    """An input bound to its content.

    Attributes:
        name: Its name among the recipe's sources.
        kind: ``weights``, ``data`` or ``code``.
        source: Where it came from.
        licence: What its licence is said to be.
        tree: Its content.
        file_count: Its files.
        size_bytes: The sum of their sizes.
        files: The files, sorted by path; empty where there are more than `MAX_LISTED_FILES`.
    """

    name: str
    kind: str
    source: str
    licence: str
    tree: Digest
    file_count: int
    size_bytes: int
    files: tuple[LockedFile, ...]

    def __post_init__(self) -> None:
        parse_label(self.name)
        if self.kind not in KINDS:
            raise InvalidRecordError(
                "unknown kind", where="kind", expected=", ".join(KINDS), actual=repr(self.kind)
            )
        _check_sorted([file.path for file in self.files], "file")
        if self.files and len(self.files) != self.file_count:
            raise InvalidRecordError(
                "files missing", where="file", expected=f"{self.file_count} files"
            )

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {
            "name": self.name,
            "kind": self.kind,
            "from": self.source,
            "licence": self.licence,
            "tree": str(self.tree),
            "files": self.file_count,
            "bytes": self.size_bytes,
            "file": [file.to_value() for file in self.files],
        }

    @classmethod
    def from_value(cls, value: object) -> LockedInput:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        made = cls(
            name=fields.text("name"),
            kind=fields.text("kind"),
            source=fields.text("from"),
            licence=fields.text("licence"),
            tree=fields.parsed("tree", Digest.parse),
            file_count=_count(fields, "files"),
            size_bytes=_count(fields, "bytes"),
            files=fields.records("file", LockedFile.from_value),
        )
        fields.done()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """A lock.

    Attributes:
        name: The recipe's name.
        sections: The digest of every section of the recipe it was made from.
        numerics: The recipe's numerics, for the reader of a diff.
        environment: What steps run in.
        inputs: Sorted by name.
        code: The tree of every step's code, by the step's name.
        kernels: The digest of the portable kernels' sources in that code; None in other classes
            and where no step computes.
        version: The version of its form, which says what its recipe's sections and nodes are.
        minimum_grade: The grade that claims have to show before what is made is released; None
            where the recipe does not ask.
    """

    name: str
    sections: Mapping[str, Digest] = field(hash=False)
    numerics: Numerics
    environment: Environment
    inputs: tuple[LockedInput, ...]
    code: Mapping[str, Digest] = field(hash=False)
    kernels: Sha256 | None = None
    version: int = VERSION
    minimum_grade: str | None = None

    def __post_init__(self) -> None:
        _check_sorted([one.name for one in self.inputs], "input")

    def input(self, name: str) -> LockedInput:
        """The input called `name`.

        Raises:
            StaleLockError: There is none.
        """
        for one in self.inputs:
            if one.name == name:
                return one
        raise StaleLockError("an input that is not locked", where=f"input {name}", advice=_ADVICE)

    def to_value(self) -> dict[str, object]:
        """The plain value, blocks sorted."""
        return {
            "version": self.version,
            "name": self.name,
            "recipe": _texts(self.sections),
            "numerics": self.numerics.to_value()
            | ({} if self.kernels is None else {"kernels": str(self.kernels)}),
            "input": [one.to_value() for one in self.inputs],
            "code": [{"step": step, "tree": str(self.code[step])} for step in sorted(self.code)],
            "environment": {
                "python": self.environment.python,
                "interpreter": str(self.environment.interpreter),
            },
            "distribution": [
                {"name": one.name, "version": one.version, "tree": str(one.content)}
                for one in self.environment.distributions
            ],
        } | ({} if self.minimum_grade is None else {RELEASE: {GRADE: self.minimum_grade}})

    @classmethod
    def from_value(cls, value: object) -> Lock:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        made = cls(
            version=fields.version(*READ),
            name=fields.parsed("name", parse_label),
            sections=fields.record("recipe", _digests),
            **fields.record("numerics", _numerics),
            inputs=fields.records("input", LockedInput.from_value),
            code=_code(fields),
            environment=_environment(fields),
            minimum_grade=fields.record(RELEASE, _grade) if fields.has(RELEASE) else None,
        )
        fields.done()
        return made


def parse_lock(text: str, *, file: str = FILE) -> Lock:
    """The lock that `text` holds.

    Raises:
        InvalidRecordError: It is not a lock; the error names the file and the path inside.
        UnsupportedVersionError: It is of another format version.
    """
    try:
        return Lock.from_value(read_toml(text))
    except KolmError as error:
        raise error.in_file(file) from None


def render_lock(lock: Lock) -> str:
    """The one text of `lock`: ``parse_lock(render_lock(lock)) == lock``."""
    return render(lock.to_value(), header=_HEADER)


def check(recipe: Recipe, lock: Lock, *, file: str = FILE) -> None:
    """Refuse a lock that was made from another recipe.

    Raises:
        StaleLockError: The first section that changed since, by name.
    """
    sections = _sections(recipe, lock)
    for section in sorted(sections.keys() | lock.sections.keys()):
        now, then = sections.get(section), lock.sections.get(section)
        if now != then:
            what = "is new" if then is None else "is gone" if now is None else "has changed"
            raise StaleLockError(
                f"the recipe's section [{section}] {what} since it was locked",
                file=file,
                where=f"recipe.{section}",
                expected=str(now or "no such section"),
                actual=str(then or "no such section"),
                advice=_ADVICE,
            )
    names = {source.name for source in recipe.sources}
    for name in sorted(names ^ {one.name for one in lock.inputs}):
        what = "is not locked" if name in names else "is not in the recipe"
        raise StaleLockError(f"an input {what}", file=file, where=f"input {name}", advice=_ADVICE)


def _sections(recipe: Recipe, lock: Lock) -> Mapping[str, Digest]:
    """The digests of the recipe's sections, as a lock of that version has them."""
    if lock.version == VERSION:
        return recipe.sections
    from kolm_build.core.lock_version_1 import sections

    return sections(recipe.pipeline, recipe.sections)


def check_inputs(lock: Lock, found: Mapping[str, Digest], *, file: str = FILE) -> None:
    """Refuse a lock whose inputs have other bytes by now.

    Args:
        lock: The lock.
        found: The content of inputs as they are now, by name; any part of them.
        file: The lock's name, for errors.

    Raises:
        StaleLockError: The first input that changed, by name.
    """
    for name in sorted(found):
        locked = lock.input(name)
        if locked.tree != found[name]:
            raise StaleLockError(
                f"{locked.source} has changed since it was locked",
                file=file,
                where=f"input {name}",
                expected=str(locked.tree),
                actual=str(found[name]),
                advice=_ADVICE,
            )


class _Arithmetic(TypedDict):
    numerics: Numerics
    kernels: Sha256 | None


def _numerics(value: object) -> _Arithmetic:
    """The numerics, and the kernels' sources that stand beside them."""
    fields = Fields(value)
    kernels = fields.parsed("kernels", Sha256.parse) if fields.has("kernels") else None
    rest = {name: value[name] for name in value if name != "kernels"}  # type: ignore[attr-defined,index]  # Fields has checked that it is a map
    numerics = Numerics.from_value(rest)
    if kernels is not None and numerics.cls != PORTABLE:
        raise InvalidRecordError(f"kernels belong to {PORTABLE}", where="kernels")
    return {"numerics": numerics, "kernels": kernels}


def _grade(value: object) -> str:
    fields = Fields(value)
    grade = fields.parsed(GRADE, parse_grade)
    fields.done()
    return grade


def _file_path(text: str) -> str:
    for part in text.split("/"):
        parse_entry(part)
    return text


def _count(fields: Fields, name: str) -> int:
    number = fields.integer(name)
    if number < 0:
        raise InvalidRecordError("out of range", where=name, expected="0 or more")
    return number


def _check_sorted(names: list[str], where: str) -> None:
    if names != sorted(set(names)):
        raise InvalidRecordError("entries out of order or repeated", where=where)


def _texts(digests: Mapping[str, Digest]) -> dict[str, object]:
    return {name: str(digests[name]) for name in sorted(digests)}


def _digests(value: object) -> Mapping[str, Digest]:
    fields = Fields(value)
    found = {name: fields.parsed(name, Digest.parse) for name in value}  # type: ignore[attr-defined]  # Fields has checked that it is a map
    fields.done()
    return found


def _code(fields: Fields) -> Mapping[str, Digest]:
    pairs = fields.records("code", _code_entry)
    _check_sorted([step for step, _ in pairs], "code")
    return dict(pairs)


def _code_entry(value: object) -> tuple[str, Digest]:
    fields = Fields(value)
    pair = fields.parsed("step", parse_label), fields.parsed("tree", Digest.parse)
    fields.done()
    return pair


def _environment(fields: Fields) -> Environment:
    distributions = fields.records("distribution", _distribution)
    head = Fields(fields.table("environment"))
    try:
        made = Environment(
            python=head.text("python"),
            interpreter=head.parsed("interpreter", Digest.parse),
            distributions=distributions,
        )
        head.done()
    except InvalidRecordError as error:
        raise error.under("environment") from None
    return made


def _distribution(value: object) -> Distribution:
    fields = Fields(value)
    made = Distribution(
        name=fields.text("name"),
        version=fields.text("version"),
        content=fields.parsed("tree", Digest.parse),
    )
    fields.done()
    return made
