"""Expected outputs: what a lock's targets were when somebody built them (spec/lock.md).

`kolm.outputs` stands beside the lock and is committed with it, so that anybody who builds the
same derivation on the same kind of machine learns at once whether the bytes are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from kolm_build.core.digest import Digest
from kolm_build.core.fields import Fields
from kolm_build.core.name import parse_label
from kolm_build.core.toml import read_toml
from kolm_build.core.toml_writer import render
from kolm_build.errors import InvalidRecordError, KolmError

VERSION = 1
FILE = "kolm.outputs"
ANY_PLATFORM = "any"

_HEADER = ("What the targets of kolm.lock were when they were built. Commit it.",)


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class ExpectedOutput:
    """What an output was.

    Attributes:
        target: The node's name.
        output: The output's name.
        platform: The machine's platform, or `ANY_PLATFORM` where nothing above the target
            depends on one.
        derivation: What was built; for another derivation the entry says nothing.
        tree: The content.
    """

    target: str
    output: str
    platform: str
    derivation: Digest
    tree: Digest

    @property
    def key(self) -> tuple[str, str, str]:
        """What there is one entry for."""
        return self.target, self.output, self.platform

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {
            "target": self.target,
            "output": self.output,
            "platform": self.platform,
            "derivation": str(self.derivation),
            "tree": str(self.tree),
        }

    @classmethod
    def from_value(cls, value: object) -> ExpectedOutput:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        made = cls(
            target=fields.parsed("target", parse_label),
            output=fields.parsed("output", parse_label),
            platform=fields.text("platform"),
            derivation=fields.parsed("derivation", Digest.parse),
            tree=fields.parsed("tree", Digest.parse),
        )
        fields.done()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The expected outputs, sorted by target, output and platform, one of each."""

    entries: tuple[ExpectedOutput, ...] = ()

    def __post_init__(self) -> None:
        keys = [entry.key for entry in self.entries]
        if keys != sorted(set(keys)):
            raise InvalidRecordError("entries out of order or repeated", where="output")

    def find(self, target: str, output: str, platform: str, derivation: Digest) -> Digest | None:
        """The content expected of `derivation` on `platform`; None where nothing is."""
        for entry in self.entries:
            if entry.key in ((target, output, platform), (target, output, ANY_PLATFORM)):
                return entry.tree if entry.derivation == derivation else None
        return None

    def with_entries(self, entries: Iterable[ExpectedOutput]) -> Outputs:
        """These outputs with `entries` in place of those they stand for."""
        merged = {entry.key: entry for entry in (*self.entries, *entries)}
        return replace(self, entries=tuple(merged[key] for key in sorted(merged)))


def parse_outputs(text: str, *, file: str = FILE) -> Outputs:
    """The expected outputs that `text` holds.

    Raises:
        InvalidRecordError: It is not such a file; the error names the file and the path inside.
        UnsupportedVersionError: It is of another format version.
    """
    try:
        fields = Fields(read_toml(text))
        fields.version(VERSION)
        entries = fields.records("output", ExpectedOutput.from_value)
        fields.done()
        return Outputs(entries=entries)
    except KolmError as error:
        raise error.in_file(file) from None


def render_outputs(outputs: Outputs) -> str:
    """The one text of `outputs`."""
    value = {"version": VERSION, "output": [entry.to_value() for entry in outputs.entries]}
    return render(value, header=_HEADER)
