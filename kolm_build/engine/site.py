"""The one folder of all distributions of an environment, made from their trees by one rule.

Each distribution's files lie in it as they were installed, with a RECORD that names them, since
`importlib.metadata` reads that; lists of TLS authorities, which belong to no content, are empty.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from kolm_build.core.digest import Blob, Digest
from kolm_build.core.environment import Environment
from kolm_build.core.tree import File, Folder, Link, Tree
from kolm_build.engine.installed import AUTHORITIES
from kolm_build.errors import MachineMismatchError

if TYPE_CHECKING:
    from kolm_build.store.local import LocalStore


class Trees(Protocol):
    """Where trees and small files are read: a store, or a pack that is being looked at."""

    def tree(self, digest: Digest) -> Tree:
        """A tree."""

    def read_blob(self, b3: Digest) -> bytes:
        """The bytes of a file."""


_METADATA = ".dist-info/METADATA"


@dataclass(slots=True)
class Site:
    """A folder in the making.

    Attributes:
        files: Path to file.
        written: The bytes of the files that no distribution brings.
    """

    files: dict[str, File] = field(default_factory=dict)
    written: dict[str, bytes] = field(default_factory=dict)

    def put(self, path: str, node: File) -> None:
        """Put a file where none is, or the same.

        Raises:
            MachineMismatchError: Another file is there.
        """
        if self.files.setdefault(path, node) != node:
            raise MachineMismatchError(
                "two distributions have one file with different bytes",
                file=path,
                advice="One of them overwrote the other when it was installed: such an"
                " environment cannot be taken apart. Install it again without one of them.",
            )

    def write(self, path: str, data: bytes) -> None:
        """Put a file with these bytes."""
        blob = Blob.of(data)
        self.put(path, File(b3=blob.b3, sha256=blob.sha256, size_bytes=blob.size_bytes))
        self.written[path] = data

    @property
    def digest(self) -> Digest:
        """The digest of the folder's tree."""
        return self._trees()[-1].digest

    def keep(self, store: LocalStore) -> Digest:
        """Put the folder into `store`, which has the distributions' files; its digest."""
        with store.scratch() as scratch:
            made = {}
            for number, (path, data) in enumerate(sorted(self.written.items())):
                made[path] = scratch / str(number)
                made[path].write_bytes(data)
            store.ingest_files({"written": made})
        return store.put_trees(self._trees())[-1]

    def _trees(self) -> list[Tree]:
        """Every folder's tree, each after those below it."""
        trees: list[Tree] = []
        _fold(sorted(self.files.items()), trees)
        return trees


def site_of(store: Trees, environment: Environment) -> Site:
    """The folder of `environment`, whose distributions are in `store`.

    Raises:
        MachineMismatchError: Two distributions have one file with different bytes.
    """
    site = Site()
    for one in environment.distributions:
        files = dict(below(store, one.content))
        for path, node in files.items():
            site.put(path, node)
        info = next((path for path in files if path.endswith(_METADATA)), None)
        if info is not None and info.count("/") == 1:
            site.write(info.removesuffix("METADATA") + "RECORD", record_of(files))
    folders = {path.rpartition("/")[0] for path in site.files}
    for path in AUTHORITIES:
        if path.rpartition("/")[0] in folders:
            site.write(path, b"")
    return site


def record_of(files: Mapping[str, File]) -> bytes:
    """The RECORD of a distribution with these files."""
    lines = []
    for path, node in sorted(files.items()):
        hashed = urlsafe_b64encode(node.sha256.raw).rstrip(b"=").decode()
        name = '"' + path.replace('"', '""') + '"' if set(path) & set(',"\r\n') else path
        lines.append(f"{name},sha256={hashed},{node.size_bytes}\n")
    return "".join(lines).encode()


def below(store: Trees, tree: Digest, prefix: str = "") -> Iterator[tuple[str, File]]:
    """Path and node of every file below a tree."""
    for name, node in store.tree(tree).entries:
        if isinstance(node, Folder):
            yield from below(store, node.tree, f"{prefix}{name}/")
        elif isinstance(node, File):
            yield prefix + name, node


def _fold(files: list[tuple[str, File]], trees: list[Tree]) -> Digest:
    """Add the trees of `files`, the topmost last; its digest."""
    here: list[tuple[str, File | Link | Folder]] = []
    inner: dict[str, list[tuple[str, File]]] = {}
    for path, node in files:
        name, slash, rest = path.partition("/")
        if slash:
            inner.setdefault(name, []).append((rest, node))
        else:
            here.append((name, node))
    for name, some in inner.items():
        here.append((name, Folder(tree=_fold(some, trees))))
    trees.append(Tree.of(here))
    return trees[-1].digest
