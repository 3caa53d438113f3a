"""Trees made of bytes in memory: their digests without a store, and keeping them in one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kolm_build.core.digest import Blob, Digest
from kolm_build.core.tree import File, Folder, Node, Tree
from kolm_build.store.local import LocalStore

Files = Mapping[str, bytes]
"""Relative path, ``/`` between names, to bytes."""


def digest_of(files: Files) -> Digest:
    """The digest of the tree that holds `files`."""
    entries: dict[str, Node] = {}
    below: dict[str, dict[str, bytes]] = {}
    for path, data in files.items():
        name, slash, rest = path.partition("/")
        if slash:
            below.setdefault(name, {})[rest] = data
        else:
            entries[name] = file_node(data)
    for name, inner in below.items():
        entries[name] = Folder(tree=digest_of(inner))
    return Tree.of(entries.items()).digest


def file_node(data: bytes) -> File:
    """The node of a file that holds `data`."""
    blob = Blob.of(data)
    return File(b3=blob.b3, sha256=blob.sha256, size_bytes=blob.size_bytes)


def keep(files: Files, store: LocalStore) -> Digest:
    """The digest of the tree that holds `files`, which is in `store` afterwards."""
    digest = digest_of(files)
    if not store.has_tree(digest):
        with store.scratch() as scratch:
            write(files, scratch / "tree")
            kept = store.ingest(scratch / "tree")
        assert kept == digest, "one set of files is one tree"
    return digest


def write(files: Files, folder: Path) -> None:
    """Write `files` below the new folder `folder`."""
    folder.mkdir()
    for path, data in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
