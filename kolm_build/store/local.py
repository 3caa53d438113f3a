"""The store in a folder: the only writer below its root.

What only some commands need is imported where it is needed: a build that has nothing to do opens
a store, looks, and ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from kolm_build.core.digest import Blob, Digest, RecordKind
from kolm_build.errors import MissingObjectError, ReadOnlyStoreError, StoreFormatError
from kolm_build.store.door import door
from kolm_build.store.index import Index, Row
from kolm_build.store.layout import FORMAT, Kind, Layout
from kolm_build.store.lockfile import held
from kolm_build.store.restore import Reader
from kolm_build.store.session import Session, remove_tree
from kolm_build.store.write import Batch, VanishedError, flush, write_named

if TYPE_CHECKING:
    from datetime import date

    from kolm_build.core.derivation import Derivation
    from kolm_build.core.gc import GcPlan
    from kolm_build.core.realisation import Realisation
    from kolm_build.core.tree import Tree
    from kolm_build.store.claims import StoredRealisation
    from kolm_build.store.give import Giver
    from kolm_build.store.packer import Have, Packing, Wanted
    from kolm_build.store.packfile import PackFile
    from kolm_build.store.roots import Root
    from kolm_build.store.take import Taker
    from kolm_build.store.unpacker import Judge, Taken
    from kolm_build.store.usage import Usage
    from kolm_build.store.verify import Report, Substitute

ATTEMPTS = 5
"""How often a write starts again because the collector took what it relied on."""

T = TypeVar("T")


class LocalStore:
    """Objects by content, claims by resolved derivation, in one folder. Threads may share it.

    Open it with `open`; close it, or use it as a context manager.

    Args:
        layout: Its paths.
        index: Its index.
        read_only: Refuse every write.
    """

    def __init__(self, layout: Layout, index: Index, *, read_only: bool) -> None:
        self._layout = layout
        self._index = index
        self._reader = Reader(layout, index)
        self._read_only = read_only
        self._session: Session | None = None
        self._lock = RLock()

    @classmethod
    def open(cls, root: Path, *, read_only: bool = False) -> Self:
        """The store at `root`; an empty or missing folder becomes one.

        Raises:
            StoreFormatError: The folder is something else, or a store of another version.
            ReadOnlyStoreError: There is no store, and none may be made.
        """
        layout = Layout(os.path.abspath(root))
        with door(layout.root):
            if not layout.is_made():
                if read_only:
                    raise ReadOnlyStoreError("there is no store here", file=layout.root)
                _make(layout)
            elif not read_only and not layout.is_whole():
                layout.make()
            index = _index(layout, read_only=read_only)
            return cls(layout, index, read_only=read_only)

    @property
    def root(self) -> Path:
        """The store's folder."""
        return Path(self._layout.root)

    @property
    def is_read_only(self) -> bool:
        """Whether every write is refused."""
        return self._read_only

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of everything that this process pinned."""
        with self._lock, door(self._layout.root):
            try:
                if self._session is not None:
                    self._session.close()
                    self._session = None
            finally:
                self._index.close()

    # Content

    def put_blob(self, data: bytes) -> Blob:
        """Keep some bytes; they stay at least until the store is closed."""
        from kolm_build.store.ingest import keep_bytes

        return self._written(lambda batch: keep_bytes(batch, data), pin=lambda blob: blob.b3)

    def put_tree(self, tree: Tree) -> Digest:
        """Keep a tree whose files and subfolders are in the store.

        Raises:
            MissingObjectError: One of them is not.
        """
        return self._written(lambda batch: self._keep_tree(batch, tree), pin=lambda digest: digest)

    def put_trees(self, trees: Sequence[Tree]) -> Sequence[Digest]:
        """Keep trees at once, each after those below it; the errors of `put_tree`."""

        def keep(batch: Batch) -> Sequence[Digest]:
            made = [self._keep_tree(batch, tree) for tree in trees]
            batch.publish(pins=made[-1:])
            return made

        return self._attempted(keep)

    def ingest(self, path: Path, *, name: str | None = None) -> Digest:
        """Copy a file or folder into the store, durably; the digest of its tree.

        Args:
            path: What to copy. A file becomes a tree of one entry.
            name: That entry's name; by default the file's own.
        """
        from kolm_build.store.ingest import Keep, walk
        from kolm_build.store.statcache import StatCache

        def keep(batch: Batch) -> Digest:
            cache = StatCache(self._index, self._writer().now_ns())
            digest = walk(str(path), name=name, sink=Keep(batch), cache=cache)
            batch.also(cache.save)
            return digest

        return self._written(keep, pin=lambda digest: digest)

    def ingest_files(self, trees: Mapping[str, Mapping[str, Path]]) -> Mapping[str, Digest]:
        """Keep files that lie anywhere as trees, all of them at once.

        Args:
            trees: Any name to the files of a tree: path in it to where the file lies. None of
                them is executable in the tree.

        Returns:
            The same names to the trees' digests.
        """
        from kolm_build.store.ingest import Keep, keep_files
        from kolm_build.store.statcache import StatCache

        def keep(batch: Batch) -> Mapping[str, Digest]:
            cache = StatCache(self._index, self._writer().now_ns())
            sink = Keep(batch)
            made = {
                name: keep_files(
                    {path: str(place) for path, place in files.items()}, sink=sink, cache=cache
                )
                for name, files in trees.items()
            }
            batch.also(cache.save)
            batch.publish(pins=made.values())
            return made

        return self._attempted(keep)

    def tree_of_path(self, path: Path, *, name: str | None = None) -> Digest:
        """The digest that `ingest` would give; nothing is copied, unchanged files are not read."""
        from kolm_build.store.ingest import Look, walk
        from kolm_build.store.statcache import StatCache

        with self._lock, door(self._layout.root):
            now_ns = 0 if self._read_only else self._writer().now_ns()
            cache = StatCache(self._index, now_ns)
            digest = walk(str(path), name=name, sink=Look(), cache=cache)
            if cache.has_new():
                with self._index.transaction():
                    cache.save()
            return digest

    def has_tree(self, digest: Digest) -> bool:
        """Whether the tree is here with everything below it."""
        with door(self._layout.root):
            return self._index.has(Kind.TREE, digest)

    def has_trees(self, digests: Iterable[Digest]) -> set[Digest]:
        """Those of `digests` that `has_tree` affirms, in one look."""
        with door(self._layout.root):
            return self._index.present(Kind.TREE, digests)

    def tree(self, digest: Digest) -> Tree:
        """A tree's record, checked.

        Raises:
            MissingObjectError: It is not here.
            CorruptObjectError: Its bytes changed.
        """
        with door(self._layout.root):
            return self._reader.tree(digest)

    def read_blob(self, b3: Digest) -> bytes:
        """All bytes of a blob, checked; the errors of `tree`."""
        with door(self._layout.root):
            return self._reader.blob(b3)

    def hashed(self, b3: Digest) -> Blob:
        """Both digests of the bytes that a blob really has; the errors of `tree`."""
        with door(self._layout.root):
            return self._reader.hashed(b3)

    def materialise(self, tree: Digest, dest: Path) -> None:
        """Make the folder `dest` from a tree: files read-only, every byte checked on the way.

        Raises:
            StoreError: `dest` is there already.
            CorruptObjectError: An object's bytes changed; nothing is left at `dest`.
        """
        with door(self._layout.root):
            if not self._read_only:
                self.pin([tree])
            self._reader.materialise(tree, str(dest))

    def contents(self) -> tuple[frozenset[Digest], frozenset[Digest]]:
        """Every tree, and every blob, that is here."""
        with door(self._layout.root):
            trees, blobs = (
                frozenset(Digest(raw) for raw in self._index.names(kind))  # type: ignore[arg-type]  # see schema
                for kind in (Kind.TREE, Kind.BLOB)
            )
        return trees, blobs

    def unpacked(self, tree: Digest, make: Callable[[Path], None]) -> Path:
        """A folder of this store that belongs to `tree`: made once, and again if it was touched.

        Args:
            tree: The tree; the folder stays until a collection finds that the tree is gone.
            make: Makes the new folder; what it makes is looked at (size, times, inode of every
                file) each time before the folder is handed out.
        """
        from kolm_build.store.unpacked import unpacked

        with self._lock, door(self._layout.root):
            return Path(unpacked(self._layout, self._index, self._writer(), tree, make))

    def pin(self, digests: Iterable[Digest]) -> set[Digest]:
        """Keep trees until the store is closed, even from a collector; those that are here."""
        wanted = set(digests)
        with door(self._layout.root):
            session = self._writer()
            with self._index.transaction():
                found = self._index.present(Kind.TREE, wanted)
                self._index.pin(session.name, found)
        return found

    # Copying from store to store

    def giver(self) -> Giver:
        """What gives objects away as they are kept, each checked."""
        from kolm_build.store.give import Giver

        return Giver(self._layout, self._index, self._reader)

    def taker(self) -> Taker:
        """What brings fetched objects in, each proved; what it took stays until this is closed."""
        from kolm_build.store.take import Taker

        with door(self._layout.root):
            return Taker(self._layout, self._index, self._reader, self._writer())

    # Derivations, claims, logs

    def put_derivation(self, derivation: Derivation) -> Digest:
        """Keep a derivation, for good."""
        data = derivation.encode()
        digest = Digest.of_record(data, RecordKind.DERIVATION)
        return self._keep(Kind.DERIVATION, digest, data)

    def has_derivation(self, digest: Digest) -> bool:
        """Whether the derivation is here."""
        with door(self._layout.root):
            return self._index.has(Kind.DERIVATION, digest)

    def derivation(self, digest: Digest) -> Derivation:
        """A derivation; the errors of `tree`."""
        from kolm_build.core.derivation import Derivation

        with door(self._layout.root):
            data = self._reader.record(Kind.DERIVATION, digest, context=RecordKind.DERIVATION)
            return Derivation.decode(data)

    def derivations(self) -> tuple[Digest, ...]:
        """Every derivation that was ever put here, sorted."""
        with door(self._layout.root):
            return tuple(row.digest for row in self._index.rows(Kind.DERIVATION))

    def put_log(self, data: bytes) -> Digest:
        """Keep a build's log, for good; its digest is a blob's."""
        return self._keep(Kind.LOG, Digest.of_blob(data), data)

    def read_log(self, digest: Digest) -> bytes:
        """A log; the errors of `tree`."""
        with door(self._layout.root):
            return self._reader.record(Kind.LOG, digest, context=None)

    def add_realisation(
        self,
        realisation: Realisation,
        *,
        derivation: Digest,
        circumstances: Mapping[str, object],
        envelope: bytes | None = None,
    ) -> None:
        """Keep a claim, for good; claims that disagree are all kept.

        Raises:
            MissingObjectError: The content is not in the store.
        """
        from kolm_build.store import claims
        from kolm_build.store.claims import StoredRealisation

        claim = StoredRealisation(
            realisation=realisation,
            derivation=derivation,
            circumstances=circumstances,
            envelope=envelope,
        )
        data = claim.encode()
        digest = Digest.of_blob(data)

        def keep(batch: Batch) -> None:
            if not batch.has(Kind.TREE, realisation.content):
                raise _absent(realisation.content)
            batch.write(Row(Kind.CLAIM, digest, len(data)), data)
            batch.also(lambda: claims.add(self._index, claim, digest))

        self._written(keep, pin=lambda _: realisation.content)

    def add_claim(self, claim: StoredRealisation) -> None:
        """Keep a claim that somebody else made and this reader believes, its content here or not.

        Args:
            claim: As it was given, envelope and all.
        """
        from kolm_build.store import claims

        data = claim.encode()
        digest = Digest.of_blob(data)

        def keep(batch: Batch) -> None:
            batch.write(Row(Kind.CLAIM, digest, len(data)), data)
            batch.also(lambda: claims.add(self._index, claim, digest))

        self._written(keep, pin=lambda _: claim.realisation.content)

    def realisations(self, resolved: Digest, output: str) -> tuple[StoredRealisation, ...]:
        """Every claim about one output; the errors of `tree`."""
        from kolm_build.store import claims

        with door(self._layout.root):
            return tuple(
                self._claim(digest) for digest in claims.of_output(self._index, resolved, output)
            )

    def contents_of(
        self, keys: Sequence[tuple[Digest, str]]
    ) -> Mapping[tuple[Digest, str], tuple[Digest, ...]]:
        """The distinct contents claimed for each (resolved derivation, output), sorted.

        Two or more mean that builders disagree. A key without a claim is left out; a content may
        have been collected since, which `has_trees` tells.
        """
        from kolm_build.store import claims

        with door(self._layout.root):
            return claims.contents_of(self._index, keys)

    # Packs

    def plan_pack(self, wanted: Wanted, *, have: Have | None = None) -> Packing:
        """The pack that holds what `wanted` says; its trees stay until the store is closed.

        Args:
            wanted: What it is to hold.
            have: What the receiver has already, to be left out.

        Raises:
            MissingObjectError: A target was never built, or something it needs is gone.
            NotReproducibleError: Two contents are claimed for one output.
        """
        from kolm_build.core.kolmpack import PackKind
        from kolm_build.store.packer import Packer

        with door(self._layout.root):
            packing = Packer(self._index, self._reader, have=have).plan(wanted)
        if not self._read_only:
            self.pin(one.digest for one in packing.head.objects if one.kind is PackKind.TREE)
        return packing

    def write_pack(self, packing: Packing, write: Callable[[bytes | memoryview], object]) -> None:
        """Write a pack piece by piece, every object checked on its way out.

        Raises:
            CorruptObjectError: An object's bytes changed; what was written is no pack.
        """
        from kolm_build.store.packer import Packer

        with door(self._layout.root):
            Packer(self._index, self._reader).write(packing, write)

    def take_pack(
        self,
        file: PackFile,
        *,
        accept_claims: bool = False,
        on_bytes: Callable[[int], None] = lambda _: None,
        judge: Judge = lambda _: None,
    ) -> Taken:
        """Take a pack in: everything is checked, then all of it is valid at once, with a root.

        Args:
            file: The open pack.
            accept_claims: Believe what it says was built from what.
            on_bytes: Told how many bytes have been checked.
            judge: Looks at what is delivered before anything is taken; raises to refuse it.

        Raises:
            PackError: It does not hold; the store is as it was.
            MissingObjectError: It is thin, and its other part is not here.
        """
        from kolm_build.store.unpacker import Unpacker

        def take(batch: Batch) -> Taken:
            return Unpacker(
                self._layout,
                self._index,
                self._reader,
                self._writer(),
                file=file,
                accept_claims=accept_claims,
                on_bytes=on_bytes,
                judge=judge,
            ).take(batch)

        return self._attempted(take)

    # Work

    @contextmanager
    def lock(
        self, resolved: Digest, *, on_wait: Callable[[str], None], holder: str | None = None
    ) -> Iterator[None]:
        """Be the only one that builds `resolved`; look again for a claim once inside.

        Args:
            resolved: The resolved derivation.
            on_wait: Told who has the lock, if somebody has.
            holder: Who this is, for the others; by default the process's number.
        """
        self._check_writable()
        path = f"{self._layout.folder('locks')}/{resolved.hex}"
        who = holder or f"process {os.getpid()}"
        with held(path, holder=who, on_wait=on_wait):
            yield

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A private empty folder on the store's file system, removed afterwards."""
        with door(self._layout.root):
            path = self._writer().temp()
            os.mkdir(path, 0o700)
        try:
            yield Path(path)
        finally:
            remove_tree(path)

    def memo_get(self, key: Digest) -> bytes | None:
        """What was remembered under `key`, if anything."""
        with door(self._layout.root):
            for (value,) in self._index.select("select value from memo where key = ?", (key.raw,)):
                return value  # type: ignore[return-value]  # the schema's types
            return None

    def memo_put(self, key: Digest, value: bytes) -> None:
        """Remember something that can be worked out again; it may be forgotten."""
        self._check_writable()
        with door(self._layout.root), self._index.transaction():
            self._index.execute("insert or replace into memo values (?, ?)", [(key.raw, value)])

    # Roots, collection, checks

    def add_root(
        self,
        name: str,
        *,
        trees: Iterable[Digest] = (),
        derivations: Iterable[Digest] = (),
        expires: date | None = None,
        path: Path | None = None,
    ) -> None:
        """Keep trees and derivations from the collector; replaces the root of that name.

        Args:
            name: The root's name.
            trees: Trees, kept with all below them.
            derivations: Derivations, kept with their outputs and inputs.
            expires: The last day on which the root holds.
            path: A file outside the store; when it is gone, the root is over.
        """
        from kolm_build.store import roots
        from kolm_build.store.roots import Root

        root = Root(
            name=name,
            trees=tuple(sorted(set(trees))),
            derivations=tuple(sorted(set(derivations))),
            expires=expires,
            path=None if path is None else os.path.abspath(path),
        )
        with door(self._layout.root):
            roots.add(self._layout, self._index, self._writer(), root)

    def roots(self) -> tuple[Root, ...]:
        """Every root, by name."""
        from kolm_build.store import roots

        with door(self._layout.root):
            return roots.listed(self._index)

    def remove_root(self, name: str) -> None:
        """Let go of a root; one that is not there is no error."""
        from kolm_build.store import roots

        self._check_writable()
        with door(self._layout.root), self._index.transaction():
            roots.remove(self._layout, self._index, [name])

    def collect(self, *, dry_run: bool, today: date | None = None) -> GcPlan:
        """Delete, beside running builds, what no root and no running process needs.

        Args:
            dry_run: Only say what would go.
            today: Roots that end before this day are over; None ends none.
        """
        from kolm_build.store.collect import Collector

        if not dry_run:
            self._check_writable()
        with self._lock, door(self._layout.root):
            collector = Collector(self._layout, self._index, self._reader, today=today)
            return collector.plan() if dry_run else collector.carry_out(self._writer())

    def fsck(
        self,
        *,
        repair: bool = False,
        deep: bool = False,
        substitute: Substitute | None = None,
    ) -> Report:
        """Hash everything again.

        Args:
            repair: Put right what can be: modes, bytes that `substitute` has; the rest becomes
                invalid, so that the next build makes it again.
            deep: Check SHA-256 and the whole of files that are stored in parts, too.
            substitute: Gives the bytes of a small object, or None.
        """
        from kolm_build.store.verify import Verifier

        if repair:
            self._check_writable()
        with self._lock, door(self._layout.root):
            verifier = Verifier(self._layout, self._index, self._reader, deep=deep)
            report = verifier.check()
            if not repair:
                return report
            return verifier.repair(
                report, self._writer(), substitute or (lambda _kind, _digest: None)
            )

    @classmethod
    def rebuild_index(cls, root: Path) -> int:
        """Make the index of a closed store again from its files; how many objects hold."""
        from kolm_build.store.rebuild import rebuild_index

        layout = Layout(os.path.abspath(root))
        with door(layout.root):
            layout.is_made()
            return rebuild_index(layout)

    def usage(self) -> Usage:
        """How many bytes each root has, and how many are on the disk."""
        from kolm_build.store.usage import measure

        with door(self._layout.root):
            return measure(self._layout, self._index, self._reader)

    # Inside

    def _check_writable(self) -> None:
        if self._read_only:
            raise ReadOnlyStoreError("the store is open for reading only", file=self._layout.root)

    def _writer(self) -> Session:
        """This process's session, begun when it first writes."""
        self._check_writable()
        with self._lock:
            if self._session is None:
                self._session = Session(self._layout, self._index)
            return self._session

    def _written(self, keep: Callable[[Batch], T], *, pin: Callable[[T], Digest]) -> T:
        """What `keep` gives, once all that it put into a batch is durable and valid."""

        def keep_all(batch: Batch) -> T:
            made = keep(batch)
            batch.publish(pins=[pin(made)])
            return made

        return self._attempted(keep_all)

    def _attempted(self, keep: Callable[[Batch], T]) -> T:
        """What `keep` gives, tried again where the collector took what it relied on."""
        with door(self._layout.root):
            session = self._writer()
            for attempt in range(ATTEMPTS):
                try:
                    with Batch(self._layout, self._index, session) as batch:
                        return keep(batch)
                except VanishedError:
                    if attempt == ATTEMPTS - 1:
                        raise
        raise AssertionError("unreachable")

    def _keep(self, kind: Kind, digest: Digest, data: bytes) -> Digest:
        def keep(batch: Batch) -> Digest:
            batch.write(Row(kind, digest, len(data)), data)
            return digest

        return self._written(keep, pin=lambda made: made)

    def _keep_tree(self, batch: Batch, tree: Tree) -> Digest:
        from kolm_build.store.ingest import keep_tree
        from kolm_build.store.references import children

        for kind, child in children(tree):
            if not batch.has(kind, child):
                raise _absent(child)
        return keep_tree(batch, tree)

    def _claim(self, digest: Digest) -> StoredRealisation:
        from kolm_build.store.claims import StoredRealisation

        return StoredRealisation.decode(self._reader.record(Kind.CLAIM, digest, context=None))


def _absent(digest: Digest) -> MissingObjectError:
    return MissingObjectError("not in the store", expected=str(digest))


def _index(layout: Layout, *, read_only: bool) -> Index:
    """The index of a store; made again where there is none, or one of another version."""
    if os.path.exists(layout.database) or read_only:
        index = Index(layout.database, read_only=read_only)
        if index.is_current():
            return index
        index.close()
        if read_only:
            raise StoreFormatError(
                "the index is of another version",
                file=layout.database,
                advice="Open the store for writing once: the index is then made again.",
            )
    from kolm_build.store.rebuild import rebuild_index

    rebuild_index(layout)
    return Index(layout.database, read_only=False)


def _make(layout: Layout) -> None:
    """Make an empty store; the format file comes last and says that all the rest is there."""
    layout.make()
    index = Index(layout.database, read_only=False)
    index.make()
    index.close()
    flush(layout.root)
    temp = f"{layout.folder('tmp')}/format.{os.urandom(8).hex()}"
    write_named(layout.format_file, FORMAT.encode(), temp)
