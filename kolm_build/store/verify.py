"""Checking a store: every byte is hashed again, every row and every file accounted for.

Repair puts back what somebody still has and makes the rest invalid, upwards: a tree without one
of its files is no tree. The next build then makes it again from its derivation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum

from blake3 import blake3

from kolm_build.core.digest import Digest, RecordKind
from kolm_build.core.tree import File, Tree
from kolm_build.errors import CorruptObjectError, MissingObjectError
from kolm_build.store.beside import Beside
from kolm_build.store.index import Index, Row
from kolm_build.store.layout import OBJECT_MODE, Form, Kind, Layout
from kolm_build.store.references import children
from kolm_build.store.restore import Reader, read_join, record_digest
from kolm_build.store.session import Session
from kolm_build.store.survey import Found, strangers, survey
from kolm_build.store.trash import to_trash
from kolm_build.store.write import write_named

Substitute = Callable[[Kind, Digest], bytes | None]
"""Gives the bytes of an object from elsewhere, or None; they are proved before they are used."""
MADE_INVALID = "made invalid: the next build makes it again"
PUT_BACK = "put back"

_SMALL_BYTES = 1 << 20
_LARGE = frozenset({Kind.BLOB, Kind.PACK})
_FOLDERS = tuple(kind for kind in Kind if kind is not Kind.PACK)

CONTEXT = {
    Kind.TREE: RecordKind.TREE,
    Kind.DERIVATION: RecordKind.DERIVATION,
    Kind.BLOB: None,
    Kind.LOG: None,
    Kind.CLAIM: None,
    Kind.PACK: None,
}
"""How the name of an object of each kind is made; None is a plain BLAKE3."""


class Trouble(StrEnum):
    """What can be wrong."""

    MISSING = "missing"
    SIZE = "wrong size"
    CORRUPT = "corrupt"
    MODE = "wrong mode"
    FOREIGN = "foreign"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        path: The file.
        trouble: What is wrong with it.
        kind: The kind of object; None for a foreign file.
        digest: The object; None for a foreign file.
        actual: What was found instead.
        repaired: What repair did: nothing yet, or words for people.
    """

    path: str
    trouble: Trouble
    kind: Kind | None = None
    digest: Digest | None = None
    actual: str | None = None
    repaired: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a check found.

    Attributes:
        objects: How many objects were checked.
        bytes_hashed: How many bytes were read.
        litter: Files without a row, left by killed writers; the collector removes them.
        findings: What is wrong, by path; empty for a sound store.
    """

    objects: int
    bytes_hashed: int
    litter: int
    findings: tuple[Finding, ...]

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


class Verifier:
    """Checks one store.

    Args:
        layout: Its paths.
        index: Its index.
        reader: Reads its records.
        deep: Check SHA-256, and the whole of joined blobs, as well.
    """

    def __init__(self, layout: Layout, index: Index, reader: Reader, *, deep: bool) -> None:
        self._layout = layout
        self._index = index
        self._reader = reader
        self._deep = deep
        self._known: dict[Kind, set[object]] = {}

    def check(self) -> Report:
        """Look at everything and change nothing."""
        rows, adrift = self._index.files(), self._index.adrift()
        self._known = {kind: self._index.names(kind) for kind in (Kind.BLOB, Kind.TREE)}
        # Large objects by two threads, records by one: reading them holds the interpreter.
        large = [row for row in rows if row.kind in _LARGE]
        records = [row for row in rows if row.kind not in _LARGE]
        with Beside() as other:
            half = other.do(lambda: self._check_rows(large[1::2]))
            findings = self._check_rows([*large[::2], *records])
            findings.extend(half.result())
        findings.extend(self._finding(row, Trouble.MISSING) for row in adrift)
        if self._deep:
            findings.extend(self._check_deep())
        litter, foreign = self._look_around({(row.kind, row.digest, row.form) for row in rows})
        return Report(
            objects=self._index.count(),
            bytes_hashed=sum(row.size_bytes for row in rows if row.form is Form.WHOLE),
            litter=litter,
            findings=tuple(sorted([*filter(self._still, findings), *foreign], key=_place)),
        )

    def _still(self, finding: Finding) -> bool:
        """Whether the object was not collected while it was looked at."""
        assert finding.kind is not None
        assert finding.digest is not None
        return self._index.has(finding.kind, finding.digest)

    def _check_rows(self, rows: Sequence[Row]) -> list[Finding]:
        return [finding for row in rows for finding in self._check_row(row)]

    def _check_row(self, row: Row) -> list[Finding]:
        path = row.path(self._layout)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            return [self._finding(row, Trouble.MISSING, error.strerror)]
        try:
            return [self._finding(row, *trouble) for trouble in self._check_file(row, path, file)]
        finally:
            os.close(file)

    def _finding(self, row: Row, trouble: Trouble, actual: str | None = None) -> Finding:
        path = row.path(self._layout)
        return Finding(path=path, trouble=trouble, kind=row.kind, digest=row.digest, actual=actual)

    def _check_file(self, row: Row, path: str, file: int) -> Iterator[tuple[Trouble, str | None]]:
        stat = os.fstat(file)
        if stat.st_mode & 0o7777 != OBJECT_MODE:
            yield Trouble.MODE, oct(stat.st_mode & 0o7777)
        joined = row.form is Form.JOINED
        if not joined and stat.st_size != row.size_bytes:
            yield Trouble.SIZE, f"{stat.st_size} bytes, not {row.size_bytes}"
            return
        if joined:
            yield from self._check_join(row, path, file)
        else:
            yield from self._check_bytes(row, path, file, stat.st_size)

    def _check_bytes(
        self, row: Row, path: str, file: int, size: int
    ) -> Iterator[tuple[Trouble, str | None]]:
        if row.kind in _LARGE and size > _SMALL_BYTES:
            actual = Digest(blake3(max_threads=blake3.AUTO).update_mmap(path).digest())
            data = b""
        else:
            data = os.read(file, size + 1)
            actual = record_digest(data, CONTEXT[row.kind])
        if actual != row.digest:
            yield Trouble.CORRUPT, str(actual)
        elif row.kind is Kind.TREE:
            yield from self._check_tree(Tree.decode(data))

    def _check_tree(self, tree: Tree) -> Iterator[tuple[Trouble, str | None]]:
        strange = {one for one in children(tree) if one[1].raw not in self._known[one[0]]}
        for kind, child in sorted(strange):
            if not self._index.has(kind, child):  # else it is younger than the check
                yield Trouble.INCOMPLETE, str(child)

    def _check_join(self, row: Row, path: str, file: int) -> Iterator[tuple[Trouble, str | None]]:
        try:
            join = read_join(os.read(file, 1 << 26), row.digest, path)
        except CorruptObjectError as error:
            yield Trouble.CORRUPT, error.actual or error.reason
            return
        for part, _ in join.parts:
            if not self._index.has(Kind.BLOB, part):
                yield Trouble.INCOMPLETE, str(part)

    def _check_deep(self) -> Iterator[Finding]:
        """Hash every file of every tree both ways, as it would be restored."""
        for b3, node in sorted(self._files().items()):
            try:
                blob = self._reader.hashed(b3)
            except (CorruptObjectError, MissingObjectError):
                continue  # the pass over the rows told that already
            if (blob.b3, blob.sha256) != (node.b3, node.sha256):
                row = self._index.row(Kind.BLOB, b3)
                yield Finding(
                    path=row.path(self._layout) if row else self._layout.path(Kind.BLOB, b3),
                    trouble=Trouble.CORRUPT,
                    kind=Kind.BLOB,
                    digest=b3,
                    actual=f"{blob.b3}, {blob.sha256}",
                )

    def _files(self) -> dict[Digest, File]:
        files = {}
        for tree in self._trees().values():
            files.update({node.b3: node for _, node in tree.entries if isinstance(node, File)})
        return files

    def _trees(self) -> dict[Digest, Tree]:
        """Every tree whose record can be read."""
        trees = {}
        for row in self._index.rows(Kind.TREE):
            with suppress(CorruptObjectError, MissingObjectError):
                trees[row.digest] = self._reader.tree(row.digest)
        return trees

    def _look_around(self, known: Set[tuple[Kind, Digest, Form]]) -> tuple[int, list[Finding]]:
        """How much litter there is, and the foreign files; `known` spares asking the index."""
        paths = list(strangers(self._layout))
        litter = 0
        for kind in _FOLDERS:
            for found in survey(self._layout, kind):
                if not isinstance(found, Found):
                    paths.append(found)
                elif (found.kind, found.digest, found.form) not in known:
                    litter += not self._is_known(found)
        return litter, [Finding(path=path, trouble=Trouble.FOREIGN) for path in paths]

    def _is_known(self, found: Found) -> bool:
        row = self._index.row(found.kind, found.digest)
        return row is not None and row.form is found.form

    def repair(self, report: Report, session: Session, substitute: Substitute) -> Report:
        """Put right what can be, make the rest invalid; the report with what was done."""
        repaired = [self._repair(finding, session, substitute) for finding in report.findings]
        self._invalidate_incomplete()
        return replace(report, findings=tuple(repaired))

    def _repair(self, finding: Finding, session: Session, substitute: Substitute) -> Finding:
        if finding.trouble is Trouble.FOREIGN:
            to_trash(self._layout, finding.path)
            return replace(finding, repaired="moved to the trash")
        assert finding.kind is not None
        assert finding.digest is not None
        if finding.trouble is Trouble.MODE:
            os.chmod(finding.path, OBJECT_MODE)
            return replace(finding, repaired="mode set")
        if finding.kind is Kind.PACK:
            return self._unpack(finding, session, substitute)
        data = substitute(finding.kind, finding.digest)
        if data is not None and record_digest(data, CONTEXT[finding.kind]) == finding.digest:
            self._put_back(finding.kind, finding.digest, data, session)
            return replace(finding, repaired=PUT_BACK)
        with self._index.transaction():
            self._index.remove(finding.kind, [finding.digest])
            if finding.kind is Kind.CLAIM:
                self._index.execute("delete from claim where digest = ?", [(finding.digest.raw,)])
        to_trash(self._layout, finding.path)
        return replace(finding, repaired=MADE_INVALID)

    def _unpack(self, finding: Finding, session: Session, substitute: Substitute) -> Finding:
        """Give up a damaged pack: each blob that is sound, or can be had, becomes a file."""
        assert finding.digest is not None
        kept = 0
        for row in self._index.packed_in(finding.digest):
            data = self._salvaged(row.digest) or substitute(Kind.BLOB, row.digest)
            if data is not None and Digest.of_blob(data) == row.digest:
                self._put_back(Kind.BLOB, row.digest, data, session)
                kept += 1
            else:
                with self._index.transaction():
                    self._index.remove(Kind.BLOB, [row.digest])
        with self._index.transaction():
            self._index.remove(Kind.PACK, [finding.digest])
        to_trash(self._layout, finding.path)
        return replace(finding, repaired=f"{kept} of its blobs put back, the rest made invalid")

    def _salvaged(self, b3: Digest) -> bytes | None:
        try:
            return self._reader.blob(b3)
        except (CorruptObjectError, MissingObjectError):
            return None

    def _put_back(self, kind: Kind, digest: Digest, data: bytes, session: Session) -> None:
        """Replace an object's file; a blob that was in parts is whole from now on."""
        with self._index.transaction():
            write_named(self._layout.path(kind, digest), data, session.temp())
            self._index.remove(kind, [digest])
            self._index.add([Row(kind, digest, len(data))])

    def _invalidate_incomplete(self) -> None:
        """Take away the rows of whatever names an object that is no longer there."""
        while gone := self._incomplete():
            with self._index.transaction():
                for kind, digest in gone:
                    self._index.remove(kind, [digest])

    def _incomplete(self) -> list[tuple[Kind, Digest]]:
        blobs = {row.digest for row in self._index.rows(Kind.BLOB)}
        trees = self._trees()
        known = {Kind.BLOB: blobs, Kind.TREE: set(trees)}
        gone = [
            (Kind.BLOB, row.digest)
            for row in self._index.rows(Kind.BLOB)
            if row.form is Form.JOINED
            and not {part for part, _ in self._reader.parts(row.digest).parts} <= blobs
        ]
        gone.extend(
            (Kind.TREE, digest)
            for digest, tree in trees.items()
            if any(child not in known[kind] for kind, child in children(tree))
        )
        return gone


def _place(finding: Finding) -> tuple[str, str]:
    return finding.path, finding.trouble
