"""The portable kernels that a lock names: the one arithmetic of all its steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kolm_build.core.digest import Digest, Sha256
from kolm_build.core.kernels import FOLDER, sources_digest
from kolm_build.core.lock import Lock
from kolm_build.core.numerics import PORTABLE, Numerics
from kolm_build.core.tree import File, Folder
from kolm_build.errors import StaleLockError
from kolm_build.store.local import LocalStore

_ADVICE = "Run `kolm lock --update code`, and look at `kolm lock diff`."


def kernels_of(numerics: Numerics, code: Mapping[str, Digest], store: LocalStore) -> Sha256 | None:
    """The digest of the kernels' sources in the code trees `code`, as far as `store` has them.

    Returns:
        None in a class other than `portable-1`, and where no step computes.

    Raises:
        StaleLockError: Two steps have other kernels: their code was locked at different times.
    """
    if numerics.cls != PORTABLE:
        return None
    found: dict[Sha256, str] = {}
    for step, tree in code.items():
        files = dict(_below(tree, FOLDER, store)) if store.has_tree(tree) else {}
        if files:
            found.setdefault(sources_digest(files), step)
    if len(found) > 1:
        raise StaleLockError(
            "the code of two steps has different kernels",
            where="numerics.kernels",
            expected="one kind of arithmetic",
            actual=", ".join(f"{step} {digest}" for digest, step in found.items()),
            advice=_ADVICE,
        )
    return next(iter(found), None)


def check_kernels(lock: Lock, store: LocalStore) -> None:
    """Refuse a lock that names other kernels than its code holds; the code is in `store`.

    Raises:
        StaleLockError: It does.
    """
    found = kernels_of(lock.numerics, lock.code, store)
    if found != lock.kernels:
        raise StaleLockError(
            "the lock names other kernels than those in the code of its steps",
            where="numerics.kernels",
            expected=str(found or "none"),
            actual=str(lock.kernels or "none"),
            advice=_ADVICE,
        )


def _below(tree: Digest, path: str, store: LocalStore) -> Iterator[tuple[str, Sha256]]:
    """The files below the folder `path` of a tree, by their path below it."""
    name, _, rest = path.partition("/")
    for entry, node in store.tree(tree).entries:
        if isinstance(node, Folder) and entry == name:
            yield from _below(node.tree, rest, store) if rest else _files(node.tree, "", store)


def _files(tree: Digest, prefix: str, store: LocalStore) -> Iterator[tuple[str, Sha256]]:
    for name, node in store.tree(tree).entries:
        if isinstance(node, Folder):
            yield from _files(node.tree, f"{prefix}{name}/", store)
        elif isinstance(node, File):
            yield prefix + name, node.sha256
