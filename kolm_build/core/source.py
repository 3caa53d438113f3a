"""Sources: where an input comes from, exactly pinned (spec/recipe.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kolm_build.errors import InvalidRecordError

PATH = "path:"
FORMS = (
    "pypi:NAME==VERSION#member, https://…, hf:ORG/NAME@<40 hex digits of a commit>, or path:./file"
)

_PYPI = re.compile(r"pypi:[A-Za-z0-9][A-Za-z0-9._-]*==[0-9A-Za-z][0-9A-Za-z.!+_-]*(#[^#\s]+)?")
_URL = re.compile(r"https?://[^\s/#]+/[^\s#]+")
_HUB = re.compile(r"hf:[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*@[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An input that `kolm lock` pins.

    Attributes:
        name: Its name in the lock.
        kind: ``weights``, ``data`` or ``code``.
        section: The section of the recipe that names it.
        text: Where it comes from.
        licence: What its licence is said to be; empty for one's own.
        files: Globs that choose among the files of a repository; empty for all of them.
    """

    name: str
    kind: str
    section: str
    text: str
    licence: str = ""
    files: tuple[str, ...] = ()

    @property
    def node(self) -> str:
        """The node that fetches it, where it is not local."""
        return self.name if self.section == "step" else f"{self.name}-source"

    @property
    def is_local(self) -> bool:
        """Whether it is a path beside the recipe."""
        return is_local(self.text)

    @property
    def path(self) -> str:
        """The path of a local source, relative to the recipe."""
        return self.text.removeprefix(PATH)


def is_local(text: str) -> bool:
    """Whether the source `text` is a path beside the recipe."""
    return text.startswith(PATH)


def parse_source(text: str) -> str:
    """`text` as a source.

    Raises:
        InvalidRecordError: It is none of the forms, or does not say exactly which version.
    """
    if is_local(text):
        parse_path(text.removeprefix(PATH))
    elif not (_PYPI.fullmatch(text) or _URL.fullmatch(text) or _HUB.fullmatch(text)):
        raise InvalidRecordError(
            "not a pinned source", expected=FORMS, actual=repr(text)[:90], advice=_advice(text)
        )
    return text


def parse_path(text: str) -> str:
    """`text` as a path beside the recipe.

    Raises:
        InvalidRecordError: It is empty or absolute, or holds what no path of ours has.
    """
    if not text or text.startswith(("/", "~")) or "\\" in text or not text.isprintable():
        raise InvalidRecordError(
            "not a path beside the recipe", expected="such as ./rows.jsonl", actual=repr(text)[:90]
        )
    return text


def parse_script(text: str) -> str:
    """`text` as the path of a Python file beside the recipe.

    Raises:
        InvalidRecordError: It is not one.
    """
    text = text.removeprefix(PATH)
    if not text.endswith(".py"):
        raise InvalidRecordError("not a Python file", expected="such as rows.py", actual=text[:80])
    return parse_path(text)


def _advice(text: str) -> str | None:
    if text.startswith("pypi:"):
        return "Pin the version with ==."
    if text.startswith("hf:"):
        return "Name the commit by its 40 hex digits: a branch or tag moves."
    return None
