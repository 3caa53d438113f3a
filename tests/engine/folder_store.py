"""A small real store for the engine's tests: folders, dictionaries, kernel locks."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from kolm_build.core.derivation import Derivation
from kolm_build.core.digest import Blob, Digest
from kolm_build.core.realisation import Realisation
from kolm_build.core.tree import File, Folder, Link, Node, Tree
from kolm_build.engine.protocol import Key
from kolm_build.errors import MissingObjectError


@dataclass(frozen=True)
class Stored:
    realisation: Realisation
    derivation: Digest
    circumstances: Mapping[str, object]


class FolderStore:
    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("locks", "tmp"):
            (root / name).mkdir(parents=True, exist_ok=True)
        self.blobs: dict[Digest, bytes] = {}
        self.trees: dict[Digest, Tree] = {}
        self.derivations: dict[Digest, Derivation] = {}
        self.claims: list[Stored] = []
        self.memos: dict[Digest, bytes] = {}
        self._lock = Lock()

    def put_blob(self, data: bytes) -> Blob:
        blob = Blob.of(data)
        self.blobs[blob.b3] = data
        return blob

    put_log = put_blob

    def read_blob(self, b3: Digest) -> bytes:
        if b3 not in self.blobs:
            raise MissingObjectError("no such blob", actual=str(b3))
        return self.blobs[b3]

    read_log = read_blob

    def ingest(self, path: Path) -> Digest:
        entries: list[tuple[str, Node]] = []
        for child in path.iterdir():
            if child.is_symlink():
                entries.append((child.name, Link(target=str(child.readlink()))))
            elif child.is_dir():
                entries.append((child.name, Folder(tree=self.ingest(child))))
            else:
                blob = self.put_blob(child.read_bytes())
                runs = bool(child.stat().st_mode & 0o100)
                node = File(
                    b3=blob.b3, sha256=blob.sha256, size_bytes=blob.size_bytes, executable=runs
                )
                entries.append((child.name, node))
        tree = Tree.of(entries)
        self.trees[tree.digest] = tree
        return tree.digest

    def has_tree(self, tree: Digest) -> bool:
        return tree in self.trees

    def tree(self, digest: Digest) -> Tree:
        return self.trees[digest]

    def materialise(self, tree: Digest, dest: Path) -> None:
        if tree not in self.trees:
            raise MissingObjectError("no such tree", actual=str(tree))
        dest.mkdir()
        for name, node in self.trees[tree].entries:
            if isinstance(node, Folder):
                self.materialise(node.tree, dest / name)
            elif isinstance(node, Link):
                (dest / name).symlink_to(node.target)
            else:
                (dest / name).write_bytes(self.read_blob(node.b3))
                (dest / name).chmod(0o555 if node.executable else 0o444)

    def put_derivation(self, drv: Derivation) -> Digest:
        self.derivations[drv.digest] = drv
        return drv.digest

    def add_realisation(
        self, r: Realisation, *, derivation: Digest, circumstances: Mapping[str, object]
    ) -> None:
        assert r.content in self.trees
        with self._lock:
            self.claims.append(Stored(r, derivation, circumstances))

    def realisations(self, resolved: Digest, output: str) -> Sequence[Stored]:
        return [
            claim
            for claim in self.claims
            if (claim.realisation.resolved, claim.realisation.output) == (resolved, output)
        ]

    def contents_of(self, keys: Sequence[Key]) -> Mapping[Key, tuple[Digest, ...]]:
        found: dict[Key, set[Digest]] = {}
        wanted = set(keys)
        for claim in self.claims:
            key = (claim.realisation.resolved, claim.realisation.output)
            if key in wanted:
                found.setdefault(key, set()).add(claim.realisation.content)
        return {key: tuple(sorted(contents)) for key, contents in found.items()}

    @contextmanager
    def lock(self, resolved: Digest, *, on_wait: Callable[[str], None]) -> Iterator[None]:
        with (self.root / "locks" / resolved.hex).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait("another process")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(dir=self.root / "tmp"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder)

    def memo_get(self, key: Digest) -> bytes | None:
        return self.memos.get(key)

    def memo_put(self, key: Digest, value: bytes) -> None:
        self.memos[key] = value
