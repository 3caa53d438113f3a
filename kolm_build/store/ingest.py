"""From a file or folder to a tree: one walk, with the bytes kept or only looked at.

What a tree cannot hold (devices, sockets, links out of it, names that would not survive on
another system) is refused with its path.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Protocol

from blake3 import blake3

from kolm_build.core.digest import Blob, Digest, RecordKind, Sha256
from kolm_build.core.tree import File, Folder, Link, Node, Tree
from kolm_build.errors import InvalidRecordError
from kolm_build.store.beside import Beside
from kolm_build.store.index import Row
from kolm_build.store.layout import Form, Kind
from kolm_build.store.statcache import StatCache, key_of
from kolm_build.store.write import Batch, write_file

MAX_DEPTH = 200
SUFFIX = ".safetensors"
IN_MEMORY_BYTES = 1 << 20
"""Smaller files are read at once, hashed, and written from memory."""

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW


class Sink(Protocol):
    """What becomes of the files and folders of a walk."""

    def known(self, b3s: Iterable[Digest]) -> set[Digest]:
        """Those of the contents that need not be read again."""

    def file(self, source: int, size: int, name: str) -> Blob:
        """The content of an open file."""

    def tree(self, tree: Tree) -> Digest:
        """The digest of a folder."""


class Keep:
    """Copy everything into a batch.

    Args:
        batch: Where to.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def known(self, b3s: Iterable[Digest]) -> set[Digest]:
        """Those that the store holds."""
        return self._batch.present(Kind.BLOB, b3s)

    def file(self, source: int, size: int, name: str) -> Blob:
        """Copy and hash: in parts where it is a safetensors file."""
        if name.endswith(SUFFIX):
            sizes = _segments(source, size)
        elif size <= IN_MEMORY_BYTES:
            return keep_bytes(self._batch, _read(source, size))
        else:
            sizes = (size,)
        return self._spool(source, sizes) if size else keep_bytes(self._batch, b"")

    def tree(self, tree: Tree) -> Digest:
        """Write the record."""
        return keep_tree(self._batch, tree)

    def _spool(self, source: int, sizes: tuple[int, ...]) -> Blob:
        from kolm_build.store.join import Join
        from kolm_build.store.spool import spool

        blob, parts = spool(source, sizes, self._batch.temp)
        for part in parts:
            self._adopt(part.b3, part.size_bytes, part.temp)
        if len(parts) > 1 and not self._batch.has(Kind.BLOB, blob.b3):
            pairs = tuple((part.b3, part.size_bytes) for part in parts)
            temp = self._batch.temp()
            write_file(temp, Join(b3=blob.b3, parts=pairs).encode())
            self._batch.adopt(Row(Kind.BLOB, blob.b3, blob.size_bytes, Form.JOINED), temp)
        return blob

    def _adopt(self, b3: Digest, size: int, temp: str) -> None:
        if self._batch.has(Kind.BLOB, b3):
            self._batch.discard(temp)
        else:
            self._batch.adopt(Row(Kind.BLOB, b3, size), temp)


class Look:
    """Hash everything and keep nothing."""

    def known(self, b3s: Iterable[Digest]) -> set[Digest]:
        """All: a digest is all that is asked for."""
        return set(b3s)

    def file(self, source: int, size: int, _name: str) -> Blob:
        """Hash."""
        if size <= IN_MEMORY_BYTES:
            return Blob.of(_read(source, size))
        return hash_file(source)

    def tree(self, tree: Tree) -> Digest:
        """The record's digest."""
        return tree.digest


def keep_bytes(batch: Batch, data: bytes) -> Blob:
    """Put bytes into a batch as a blob."""
    blob = Blob.of(data)
    batch.write(Row(Kind.BLOB, blob.b3, len(data)), data)
    return blob


def keep_tree(batch: Batch, tree: Tree) -> Digest:
    """Put a tree's record into a batch; its children are there already."""
    data = tree.encode()
    digest = Digest.of_record(data, RecordKind.TREE)
    batch.write(Row(Kind.TREE, digest, len(data)), data)
    return digest


def walk(path: str, *, name: str | None, sink: Sink, cache: StatCache) -> Digest:
    """The tree at `path`; a file is a tree of one entry.

    Args:
        path: A file or folder; a link is followed here and nowhere below.
        name: The entry's name where `path` is a file; by default the file's own.
        sink: What becomes of the bytes.
        cache: Saves reading files that did not change.

    Raises:
        InvalidRecordError: Something there cannot be in a tree.
    """
    path = os.path.realpath(path)
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        return _folder(path, 0, sink, cache)
    entry = name or os.path.basename(path)
    nodes = _files({entry: (path, found)}, sink, cache)
    return sink.tree(Tree.of(nodes.items()))


def keep_files(files: Mapping[str, str], *, sink: Sink, cache: StatCache) -> Digest:
    """The tree of files that lie anywhere, none of them executable.

    Args:
        files: Path in the tree, ``/`` between names, to where the file lies; links are followed.
        sink: What becomes of the bytes.
        cache: Saves reading files that did not change.

    Raises:
        InvalidRecordError: No tree may hold one of them.
    """
    here: dict[str, tuple[str, os.stat_result]] = {}
    below: dict[str, dict[str, str]] = {}
    for path, place in files.items():
        name, slash, rest = path.partition("/")
        if slash:
            below.setdefault(name, {})[rest] = place
        else:
            here[name] = (os.path.realpath(place), os.stat(place))
    nodes = {
        name: replace(node, executable=False) if isinstance(node, File) else node
        for name, node in _files(here, sink, cache).items()
    }
    for name, inner in below.items():
        nodes[name] = Folder(tree=keep_files(inner, sink=sink, cache=cache))
    return sink.tree(Tree.of(nodes.items()))


def _folder(path: str, depth: int, sink: Sink, cache: StatCache) -> Digest:
    if depth > MAX_DEPTH:
        raise InvalidRecordError(f"folders nested deeper than {MAX_DEPTH}", file=path)
    nodes: dict[str, Node] = {}
    files = {}
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_symlink():
                nodes[entry.name] = _link(entry.path, depth)
            elif entry.is_dir(follow_symlinks=False):
                nodes[entry.name] = Folder(tree=_folder(entry.path, depth + 1, sink, cache))
            else:
                files[entry.name] = (entry.path, entry.stat(follow_symlinks=False))
    nodes.update(_files(files, sink, cache))
    try:
        return sink.tree(Tree.of(nodes.items()))
    except (InvalidRecordError, UnicodeEncodeError) as error:
        raise _unfit(error, path) from None


def _unfit(error: InvalidRecordError | UnicodeEncodeError, path: str) -> InvalidRecordError:
    if isinstance(error, InvalidRecordError):
        return error.in_file(path)
    return InvalidRecordError("a name that is not UTF-8", file=path, actual=ascii(error.object))


def _link(path: str, depth: int) -> Link:
    target = os.readlink(path)
    if target.split("/").count("..") > depth:
        raise InvalidRecordError("a link leads out of the folder", file=path, actual=target)
    return Link(target=target)


def _files(
    files: dict[str, tuple[str, os.stat_result]], sink: Sink, cache: StatCache
) -> dict[str, Node]:
    """The files of one folder: one look into the cache for all of them."""
    cached = cache.find([found for _, found in files.values()])
    known = sink.known(blob.b3 for blob in cached.values())
    nodes: dict[str, Node] = {}
    for name, (path, found) in files.items():
        blob = cached.get(key_of(found)) if cached else None
        if not stat.S_ISREG(found.st_mode):
            raise InvalidRecordError("not a file, folder or link", file=path)
        if blob is None or blob.b3 not in known:
            blob = _read_file(path, name, found, sink, cache)
        nodes[name] = File(
            b3=blob.b3,
            sha256=blob.sha256,
            size_bytes=blob.size_bytes,
            executable=bool(found.st_mode & stat.S_IXUSR),
        )
    return nodes


def _read_file(path: str, name: str, found: os.stat_result, sink: Sink, cache: StatCache) -> Blob:
    source = os.open(path, _READ)
    try:
        blob = sink.file(source, found.st_size, name)
        if cache.is_at_rest(found) and key_of(os.fstat(source)) == key_of(found):
            cache.keep(found, blob)
    except InvalidRecordError as error:
        raise error.in_file(path) from None
    finally:
        os.close(source)
    return blob


def hash_file(source: int) -> Blob:
    """Both digests of an open file of any size."""
    size = os.fstat(source).st_size
    if size == 0:
        return Blob.of(b"")
    sha = sha256()
    with mmap.mmap(source, size, access=mmap.ACCESS_READ) as view, Beside() as other:
        beside = other.do(lambda: sha.update(view))
        b3 = blake3(view, max_threads=blake3.AUTO).digest()
        beside.result()
    return Blob(b3=Digest(b3), sha256=Sha256(sha.digest()), size_bytes=size)


def _read(source: int, size: int) -> bytes:
    """All bytes of an open file that had `size` of them a moment ago."""
    data = os.read(source, size + 1)
    if len(data) == size:
        return data
    pieces = [data]
    while pieces[-1]:
        pieces.append(os.read(source, IN_MEMORY_BYTES))
    return b"".join(pieces)


def _segments(source: int, size: int) -> tuple[int, ...]:
    """How a safetensors file is kept: whole, where its header is not a strict one."""
    from kolm_build.core import safetensors
    from kolm_build.store.join import segments

    try:
        length = safetensors.header_length(os.pread(source, safetensors.PREFIX_BYTES, 0), size)
        return segments(os.pread(source, length, safetensors.PREFIX_BYTES), size)
    except InvalidRecordError:
        return (size,)
