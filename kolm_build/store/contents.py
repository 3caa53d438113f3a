"""What a store has by its content: blobs, and trees of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.core.digest import Blob, Digest
from kolm_build.errors import MissingObjectError
from kolm_build.store.door import door
from kolm_build.store.layout import Kind
from kolm_build.store.opened import Opened, absent
from kolm_build.store.write import Batch

if TYPE_CHECKING:
    from kolm_build.core.tree import Tree


class Contents(Opened):
    """Blobs and trees of an open store."""

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

    def materialise_file(self, tree: Digest, name: str, dest: Path) -> None:
        """Make the file `dest` from the file `name` of a tree: read-only, every byte checked.

        Raises:
            MissingObjectError: The tree has no such file.
            CorruptObjectError: An object's bytes changed; nothing is left at `dest`.
        """
        from kolm_build.core.tree import File

        with door(self._layout.root):
            if not self._read_only:
                self.pin([tree])
            node = dict(self._reader.tree(tree).entries).get(name)
            if not isinstance(node, File):
                raise MissingObjectError("the tree has no such file", where=name)
            self._restore(node.b3, dest, executable=node.executable)

    def blob_size(self, b3: Digest) -> int | None:
        """How many bytes a blob has; None where it is not here."""
        with door(self._layout.root):
            if not self._index.has(Kind.BLOB, b3):
                return None
            return sum(size_bytes for _, size_bytes in self._reader.leaves(b3))

    def materialise_blob(self, b3: Digest, dest: Path) -> None:
        """Make the file `dest` from a blob: read-only, every byte checked.

        Raises:
            MissingObjectError: It is not here.
            CorruptObjectError: Its bytes changed; nothing is left at `dest`.
        """
        with door(self._layout.root):
            if not self._read_only:
                self.pin([b3])
            self._restore(b3, dest, executable=False)

    def _restore(self, b3: Digest, dest: Path, *, executable: bool) -> None:
        try:
            self._reader.restore_blob(b3, str(dest), executable=executable)
        except BaseException:
            dest.unlink(missing_ok=True)
            raise

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

    def _keep_tree(self, batch: Batch, tree: Tree) -> Digest:
        from kolm_build.store.ingest import keep_tree
        from kolm_build.store.references import children

        for kind, child in children(tree):
            if not batch.has(kind, child):
                raise absent(child)
        return keep_tree(batch, tree)
