"""Taking packs into a store: all or nothing (spec/kolmpack.md).

Everything is checked while it is written aside; then one transaction makes it valid, its root
last. Large blobs wait in a folder named after the pack, so that an import that was killed goes on
where it stopped; the collector sweeps the folder as it sweeps that of any dead process.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from kolm_build.core.digest import Blob, Digest
from kolm_build.core.kolmpack import Entry, PackKind, Part
from kolm_build.core.tree import File, Tree
from kolm_build.errors import (
    InvalidRecordError,
    MissingObjectError,
    NoSpaceError,
    PackDamagedError,
    PackIncompleteError,
    StoreError,
)
from kolm_build.store import claims, roots
from kolm_build.store.claims import StoredRealisation
from kolm_build.store.index import Index, Row
from kolm_build.store.ingest import IN_MEMORY_BYTES
from kolm_build.store.join import Join
from kolm_build.store.layout import Form, Kind, Layout
from kolm_build.store.packer import STORED_AS, Share, shares
from kolm_build.store.packfile import (
    Hasher,
    PackFile,
    Records,
    check,
    check_blob,
    check_whole,
    read_records,
)
from kolm_build.store.reach import Reached
from kolm_build.store.restore import Reader
from kolm_build.store.roots import Root
from kolm_build.store.session import Session, remove_tree
from kolm_build.store.spool import spool
from kolm_build.store.write import Batch, write_file

OnBytes = Callable[[int], None]
"""Told how many bytes of objects have been checked so far."""

Judge = Callable[["Delivered"], None]
"""Looks at what a pack delivers before anything of it is taken; raises to refuse it."""

_MARGIN_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a check of a whole pack found.

    Attributes:
        shares: Part to its share.
        found: What the walk reached.
        records: The records.
    """

    shares: Mapping[Part, Share]
    found: Reached
    records: Records


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A pack that is in the store now.

    Attributes:
        id: The pack's id.
        root: The root that keeps it.
        shares: Part to its share of the file.
        new_objects: How many derivations, trees and blobs the store did not have before.
        claims: How many claims are believed from now on.
        claims_left: How many claims of the pack are not.
        resumed_bytes: What an interrupted import had written already.
    """

    id: Digest
    root: str
    shares: Mapping[Part, Share]
    new_objects: int
    claims: int
    claims_left: int
    resumed_bytes: int


class Delivered:
    """The trees and small files of a pack, and of the store that it is taken into.

    Args:
        file: The pack.
        records: Its records.
        reader: Reads the store's objects; None where the pack must hold everything.
    """

    def __init__(self, file: PackFile, records: Records, reader: Reader | None) -> None:
        self._file = file
        self._records = records
        self._reader = reader
        self._places = _places(file)

    @property
    def environments(self) -> tuple[tuple[Digest, Digest], ...]:
        """Environment to its tree."""
        return self._file.head.environments

    @property
    def is_thin(self) -> bool:
        """Whether some of it is elsewhere."""
        return bool(self._file.head.needs)

    def tree(self, digest: Digest) -> Tree:
        """A tree; the errors of a store where the pack leaves it to one."""
        if digest in self._records.trees or self._reader is None:
            return self._records.tree(digest)
        return self._reader.tree(digest)

    def read_blob(self, b3: Digest) -> bytes:
        """All bytes of a blob, checked."""
        entry = self._places.get(b3)
        if entry is not None:
            return self._file.record(entry)
        if self._reader is None:
            raise PackIncompleteError("the pack lacks a file", expected=str(b3))
        return self._reader.blob(b3)


def check_pack(
    file: PackFile, on_bytes: OnBytes = lambda _: None, *, judge: Judge = lambda _: None
) -> Checked:
    """Check every byte of a pack without a store; what it needs of others is not looked for.

    Raises:
        PackError: It does not hold.
    """
    checked = _check_records(file)
    if not file.head.needs:
        judge(Delivered(file, checked.records, None))
    done = 0
    for entry in file.head.objects:
        if entry.kind >= PackKind.LOG:
            hasher = Hasher()
            for piece in file.pieces(entry):
                hasher.update(piece)
            check_blob(entry, hasher.blob, _files(entry, checked.found))
        done += entry.size_bytes
        on_bytes(done)
    places = _places(file)
    for b3, join in checked.records.joins.items():
        if all(part in places for part, _ in join.parts):
            _check_join(b3, _joined(file, places, join, None), checked.found)
    return checked


def root_name(pack: Digest) -> str:
    """The name of the root that keeps what came in a pack."""
    return pack.hex


class Unpacker:
    """Takes one pack into a store.

    Args:
        layout: The store's paths.
        index: Its index.
        reader: Reads its objects.
        session: Who writes.
        file: The pack.
        accept_claims: Believe what the pack says was built from what.
        on_bytes: Told of the progress.
        judge: Looks at what is delivered before it is taken.
    """

    def __init__(
        self,
        layout: Layout,
        index: Index,
        reader: Reader,
        session: Session,
        *,
        file: PackFile,
        accept_claims: bool,
        on_bytes: OnBytes,
        judge: Judge,
    ) -> None:
        self._layout = layout
        self._index = index
        self._reader = reader
        self._session = session
        self._file = file
        self._accept_claims = accept_claims
        self._on_bytes = on_bytes
        self._judge = judge
        self._resumed_bytes = 0

    def take(self, batch: Batch) -> Taken:
        """Put everything into `batch`; whoever publishes it makes it valid at once.

        Raises:
            PackError: The pack does not hold.
            MissingObjectError: It needs something that is not in the store.
            NoSpaceError: It would not fit.
        """
        _check_space(self._layout.root, self._file)
        checked = _check_records(self._file)
        self._check_needs(batch, checked)
        self._judge(Delivered(self._file, checked.records, self._reader))
        new_objects = self._new_objects()
        with _waiting(self._layout, self._index, self._file.id) as folder:
            self._records(batch)
            self._blobs(batch, checked.found, folder)
            self._joins(batch, checked)
            taken_claims = self._claims(batch, checked) if self._accept_claims else 0
            root = Root(
                name=root_name(self._file.id),
                trees=tuple(sorted(checked.found.tops)),
                derivations=tuple(sorted({one.derivation for one in self._file.head.targets})),
            )
            for one in (root, *self._environment_roots()):
                batch.also(self._rooting(one))
            batch.publish(pins=root.trees)
        return Taken(
            id=self._file.id,
            root=root.name,
            shares=checked.shares,
            new_objects=new_objects,
            claims=taken_claims,
            claims_left=len(checked.records.claims) - taken_claims,
            resumed_bytes=self._resumed_bytes,
        )

    def _environment_roots(self) -> Iterator[Root]:
        """A root for each environment, under the name by which builds look for it.

        What is under it is compared with the environment's own record before it is used.
        """
        for environment, tree in self._file.head.environments:
            yield Root(name=environment.hex, trees=(tree,))

    def _rooting(self, root: Root) -> Callable[[], None]:
        return lambda: roots.write(self._layout, self._index, self._session, root)

    def _new_objects(self) -> int:
        """How many of the derivations, trees and blobs the store does not have yet."""
        wanted: dict[Kind, set[Digest]] = {}
        for entry in self._file.head.objects:
            if entry.kind not in (PackKind.CLAIM, PackKind.LOG):
                wanted.setdefault(STORED_AS[entry.kind], set()).add(entry.digest)
        return sum(
            len(some) - len(self._index.present(kind, some)) for kind, some in wanted.items()
        )

    def _check_needs(self, batch: Batch, checked: Checked) -> None:
        """Refuse a thin pack whose other part is not here, byte for byte as it says."""
        for kind in (PackKind.TREE, PackKind.BLOB):
            sizes = {
                one.digest: one.size_bytes for one in self._file.head.needs if one.kind is kind
            }
            gone = sizes.keys() - batch.present(STORED_AS[kind], sizes)
            if gone:
                raise MissingObjectError(
                    f"the pack leaves out {len(gone)} objects that are not in the store",
                    expected=f"{kind.name.lower()} {min(gone)}",
                    advice="It is thin: import the delivery that it was made against first.",
                )
        needed = {one.digest for one in self._file.head.needs if one.kind is PackKind.BLOB}
        for b3, files in checked.found.files.items():
            if b3 in needed:
                blob = self._reader.hashed(b3)
                check_blob(Entry(PackKind.BLOB, b3, blob.size_bytes), blob, files)

    def _records(self, batch: Batch) -> None:
        for entry in self._file.head.objects:
            if entry.kind in (PackKind.DERIVATION, PackKind.TREE):
                row = Row(STORED_AS[entry.kind], entry.digest, entry.size_bytes)
                batch.write(row, self._file.record(entry))

    def _blobs(self, batch: Batch, found: Reached, folder: str) -> None:
        done = 0
        for entry in self._file.head.objects:
            files = _files(entry, found)
            if entry.kind is PackKind.LOG or (
                entry.kind is PackKind.BLOB and entry.size_bytes <= IN_MEMORY_BYTES
            ):
                data = self._file.read(entry)
                check_blob(entry, Blob.of(data), files)
                if entry.kind is PackKind.BLOB or self._accept_claims:
                    batch.write(Row(STORED_AS[entry.kind], entry.digest, len(data)), data)
            elif entry.kind is PackKind.BLOB:
                self._large(batch, entry, files, folder)
            done += entry.size_bytes
            self._on_bytes(done)

    def _large(self, batch: Batch, entry: Entry, files: set[File], folder: str) -> None:
        """A large blob: copied aside, or found there, or only checked where the store has it."""
        if batch.has(Kind.BLOB, entry.digest):
            check_blob(entry, self._hashed(entry), files)
            return
        place = f"{folder}/{entry.digest.hex}"
        blob = _waiting_blob(place)
        if blob is not None and blob.b3 == entry.digest:
            # What comes is checked even where it is not needed any more.
            check_blob(entry, self._hashed(entry), files)
            self._resumed_bytes += entry.size_bytes
        else:
            blob = self._copied(entry, place)
        check_blob(entry, blob, files)
        batch.adopt(Row(Kind.BLOB, entry.digest, entry.size_bytes), place)

    def _hashed(self, entry: Entry) -> Blob:
        hasher = Hasher()
        for piece in self._file.pieces(entry):
            hasher.update(piece)
        return hasher.blob

    def _copied(self, entry: Entry, place: str) -> Blob:
        half = f"{place}.part"
        for stale in (place, half):
            with suppress(FileNotFoundError):
                os.unlink(stale)
        os.lseek(self._file.fd, self._file.offsets[entry], os.SEEK_SET)
        try:
            blob, _ = spool(self._file.fd, (entry.size_bytes,), lambda: half, clone=False)
        except InvalidRecordError as error:
            raise PackDamagedError("the pack became shorter while it was read") from error
        check(entry, blob.b3)
        os.rename(half, place)
        return blob

    def _joins(self, batch: Batch, checked: Checked) -> None:
        places = _places(self._file)
        for b3, join in checked.records.joins.items():
            _check_join(b3, _joined(self._file, places, join, self._reader), checked.found)
            if not batch.has(Kind.BLOB, b3):
                temp = batch.temp()
                write_file(temp, join.encode())
                batch.adopt(Row(Kind.BLOB, b3, join.size_bytes, Form.JOINED), temp)

    def _claims(self, batch: Batch, checked: Checked) -> int:
        """Take the claims whose content is here, the unsigned ones marked; how many."""
        count = 0
        for entry in self._file.head.objects:
            if entry.kind is not PackKind.CLAIM:
                continue
            claim = checked.records.claims[entry.digest]
            if batch.has(Kind.TREE, claim.realisation.content):
                count += 1
                if not batch.has(Kind.CLAIM, entry.digest):  # else it is of this store already
                    self._claim(batch, claim)
        return count

    def _claim(self, batch: Batch, claim: StoredRealisation) -> None:
        kept = replace(claim, is_delivered=claim.envelope is None)
        data = kept.encode()
        digest = Digest.of_blob(data)
        batch.write(Row(Kind.CLAIM, digest, len(data)), data)
        batch.also(lambda: claims.add(self._index, kept, digest))


def _check_records(file: PackFile) -> Checked:
    records = read_records(file)
    found = check_whole(file.head, records)
    return Checked(shares=shares(file.head, found), found=found, records=records)


def _files(entry: Entry, found: Reached) -> set[File]:
    """What trees say of a blob; nothing of a log, whose digest may be a blob's too."""
    return found.files.get(entry.digest, set()) if entry.kind is PackKind.BLOB else set()


def _check_join(b3: Digest, actual: Blob, found: Reached) -> None:
    entry = Entry(PackKind.JOIN, b3, actual.size_bytes)
    check_blob(entry, actual, found.files.get(b3, set()))


def _places(file: PackFile) -> dict[Digest, Entry]:
    return {entry.digest: entry for entry in file.head.objects if entry.kind is PackKind.BLOB}


def _joined(
    file: PackFile, places: Mapping[Digest, Entry], join: Join, reader: Reader | None
) -> Blob:
    """What the parts of a joined blob are together, each checked once more as it is read."""
    whole = Hasher()
    for part, _ in join.parts:
        entry = places.get(part)
        if entry is None:
            assert reader is not None, "parts of an earlier delivery are in the store"
            for data in reader.stream(part):
                whole.update(data)
            continue
        piece = Hasher()
        for some in file.pieces(entry):
            whole.update(some)
            piece.update(some)
        check(entry, piece.blob.b3)
    return whole.blob


def _waiting_blob(place: str) -> Blob | None:
    """The digests of what an interrupted import left, if it left anything."""
    hasher = Hasher()
    try:
        fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    with os.fdopen(fd, "rb", buffering=0) as file:
        while data := file.read(IN_MEMORY_BYTES):
            hasher.update(data)
    return hasher.blob


@contextmanager
def _waiting(layout: Layout, index: Index, pack: Digest) -> Iterator[str]:
    """The folder where a pack's large blobs wait; kept only when the process is ended.

    Raises:
        StoreError: Another process imports the same pack.
    """
    folder = f"{layout.folder('tmp')}/import-{pack.hex}"
    with index.transaction():
        os.makedirs(folder, 0o700, exist_ok=True)
        lock = os.open(f"{folder}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise StoreError("another process imports this pack", file=folder) from None
    try:
        yield folder
    except Exception:
        remove_tree(folder)
        raise
    else:
        remove_tree(folder)
    finally:
        os.close(lock)


def _check_space(root: str, file: PackFile) -> None:
    free = os.statvfs(root)
    available = free.f_bavail * free.f_frsize
    if file.head.size_bytes + _MARGIN_BYTES > available:
        raise NoSpaceError(
            "the pack does not fit on the store's file system",
            file=root,
            expected=f"{file.head.size_bytes + _MARGIN_BYTES} bytes free",
            actual=f"{available} bytes free",
            advice="`kolm store gc` frees what no root needs.",
        )
