"""Installed distributions: what each consists of, by the files that its RECORD names.

A distribution's content is the digest of the tree of its files below site-packages, none of them
executable. Compiled files, the installer's own notes and scripts outside site-packages are left
out: they hold paths and times of this machine.
"""

from __future__ import annotations

import csv
import json
import os
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from blake3 import blake3

from kolm_build.core.digest import Digest, Sha256
from kolm_build.core.environment import parse_distribution_name
from kolm_build.core.tree import File, Folder, Node, Tree
from kolm_build.errors import InvalidRecordError, MachineMismatchError

_NOTES = frozenset(
    {"RECORD", "RECORD.jws", "RECORD.p7s", "INSTALLER", "REQUESTED", "direct_url.json",
     "uv_cache.json", "uv_build.json"}
)  # fmt: skip
_CHUNK_BYTES = 1 << 20

AUTHORITIES = ("certifi/cacert.pem", "pip/_vendor/certifi/cacert.pem")
"""Whom TLS trusts is this machine's policy, and administrators add to it: no part of a content.

Steps with the network see these files; from all others the sandbox hides them.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A distribution as it is installed.

    Attributes:
        name: Its normalised name.
        version: Its version, as its folder says.
        info: Its ``.dist-info`` folder.
    """

    name: str
    version: str
    info: Path

    @property
    def site(self) -> Path:
        """The folder it is installed in."""
        return self.info.parent

    @property
    def record(self) -> Path:
        """Its list of files."""
        return self.info / "RECORD"

    def rows(self) -> Mapping[str, str]:
        """Path below the site folder to the hash that RECORD gives, for all that counts.

        Raises:
            MachineMismatchError: There is no RECORD.
        """
        try:
            return _rows(str(self.record), self.info.name, stamp([str(self.record)]))
        except OSError as error:
            raise MachineMismatchError(
                f"the distribution {self.name} does not say which files it has",
                file=str(self.record),
                actual=error.strerror,
                advice="Install it again from a wheel.",
            ) from error

    def is_editable(self) -> bool:
        """Whether it is a link to a folder that somebody edits."""
        try:
            url = json.loads((self.info / "direct_url.json").read_bytes())
        except (OSError, ValueError):
            return False
        info = url.get("dir_info") if isinstance(url, dict) else None
        return isinstance(info, dict) and info.get("editable") is True

    def requirements(self) -> Iterator[str]:
        """What its metadata says that it needs."""
        text = (self.info / "METADATA").read_text(encoding="utf-8", errors="replace")
        for line in text.partition("\n\n")[0].splitlines():
            field, _, value = line.partition(":")
            if field.lower() == "requires-dist":
                yield value.strip()

    def content(self) -> Digest:
        """The digest of its files, every one read.

        Raises:
            MachineMismatchError: A file is missing, or is not what was installed.
        """
        files = {path: _file(self.site / path, hashed) for path, hashed in self.rows().items()}
        return tree_digest(files)

    def stamp(self) -> bytes:
        """Changes when a file does: size, time and place on disk of each, none of them read."""
        site = str(self.site)
        return stamp([f"{site}/{path}" for path in self.rows()])


@lru_cache(maxsize=4096)
def _rows(record: str, info: str, _stamp: bytes) -> Mapping[str, str]:
    """What the RECORD at `record` says of each path that counts, read once while it is the same."""
    notes = {f"{info}/{name}" for name in _NOTES} | {*AUTHORITIES}
    rows = _split(Path(record).read_text(encoding="utf-8"))
    return {
        row[0]: row[1]
        for row in rows
        if len(row) == 3
        and not row[0].endswith(".pyc")
        and not row[0].startswith(("..", "/"))
        and row[0] not in notes
    }


def _split(text: str) -> Iterable[list[str]]:
    """The rows of a RECORD; most have no quotes, and are split in half the time."""
    lines = text.splitlines()
    if '"' in text:
        return csv.reader(lines)
    return [line.rsplit(",", 2) for line in lines]


def installed(site: Path) -> Mapping[str, Installed]:
    """Every distribution in the folder `site`, by normalised name."""
    found: dict[str, Installed] = {}
    for entry in sorted(os.scandir(site), key=lambda entry: entry.name):
        match = re.fullmatch(r"(.+)-([^-]+)\.dist-info", entry.name)
        if match is None:
            continue
        name = parse_distribution_name(match[1])
        found[name] = Installed(name=name, version=match[2], info=Path(entry.path))
    return found


def stamp(paths: Iterable[str]) -> bytes:
    """A digest of size, time and inode of each path; a missing one counts as such."""
    look = os.stat  # thousands of them: a Path method is slower, and so is a line for each
    facts: list[tuple[object, ...]] = []
    for path in paths:
        try:
            one = look(path)
            facts.append((path, one.st_size, one.st_mtime_ns, one.st_ino))
        except OSError:
            facts.append((path,))
    return blake3(ascii(facts).encode()).digest()


def hash_file(path: Path) -> File:
    """`path` as the file of a tree, not executable."""
    b3, sha, size = blake3(), sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            b3.update(chunk)
            sha.update(chunk)
            size += len(chunk)
    return File(b3=Digest(b3.digest()), sha256=Sha256(sha.digest()), size_bytes=size)


def _file(path: Path, hashed: str) -> File:
    """The file at `path`, which must have the hash that RECORD gives, where it gives one."""
    try:
        file = hash_file(path)
    except OSError as error:
        raise MachineMismatchError(
            "an installed file cannot be read", file=str(path), actual=error.strerror
        ) from error
    actual = "sha256=" + urlsafe_b64encode(file.sha256.raw).rstrip(b"=").decode()
    if hashed.startswith("sha256=") and hashed != actual:
        raise MachineMismatchError(
            "a file was changed after it was installed",
            file=str(path),
            expected=hashed,
            actual=actual,
            advice="Install its distribution again (`pip install --force-reinstall`).",
        )
    return file


def tree_digest(files: Mapping[str, File]) -> Digest:
    """The digest of the tree that holds `files`, given by path.

    Raises:
        InvalidRecordError: No tree may hold one of the names.
    """
    folders: dict[str, dict[str, File]] = {}
    entries: list[tuple[str, Node]] = []
    for path, file in files.items():
        name, slash, rest = path.partition("/")
        if slash:
            folders.setdefault(name, {})[rest] = file
        else:
            entries.append((name, file))
    for name, below in folders.items():
        try:
            entries.append((name, Folder(tree=tree_digest(below))))
        except InvalidRecordError as error:
            raise error.under(name) from None
    return Tree.of(entries).digest
