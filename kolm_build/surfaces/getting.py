"""What was built, out of the store as a plain folder or file (spec/cli.md, CLI-36 to CLI-39)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from kolm_build.core.closure import closure
from kolm_build.core.derivation import Derivation, OutputInput
from kolm_build.core.digest import Digest
from kolm_build.core.plan import Reuse, plan
from kolm_build.core.tree import File, Folder
from kolm_build.errors import MissingObjectError, UsageError
from kolm_build.surfaces.lookup import Look
from kolm_build.surfaces.placing import check_place, placed

if TYPE_CHECKING:
    from kolm_build.core.instantiation.instance import Instance
    from kolm_build.store.local import LocalStore

OpenLook = Callable[[], Look]
"""Opens the project, where a node of it is meant."""

Derivations = Mapping[Digest, Derivation]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is got.

    Attributes:
        label: How it is called: ``node.output``, or the digest of a tree or blob.
        output: The output of a derivation that it is; None for a tree or blob alone.
        tree: The tree: the output, or the folder in it that is meant or that has the file; None for
            a blob alone.
        file: The name of a file in `tree`; None for all of it.
        content: The digest of the tree, or of the file's bytes.
        size_bytes: The size of its files.
        files: How many there are.
    """

    label: str
    output: OutputInput | None
    tree: Digest | None
    file: str | None
    content: Digest
    size_bytes: int
    files: int

    def to_value(self) -> dict[str, object]:
        """The source as a JSON object."""
        return {
            "bytes": self.size_bytes,
            "content": str(self.content),
            "derivation": None if self.output is None else str(self.output.derivation),
            "files": self.files,
            "kind": "folder" if self.file is None else "file",
            "of": self.label,
        }


def find(text: str, store: LocalStore, look: OpenLook) -> Source:
    """What ``node``, ``node.output``, a digest or a path in one of them names.

    Args:
        text: Such as ``merge-1``, ``train-1.metrics/metrics.csv``, ``b3:…``, ``b3:….adapter``.
        store: Where it is.
        look: Opens the project.

    Raises:
        UsageError: There is no such node, output or path.
        MissingObjectError: It was never built, or is gone.
        NotReproducibleError: Two contents are claimed for it.
    """
    name, _, path = text.partition("/")
    if not name.startswith(Digest.prefix + ":"):
        instance = look().instance
        output = _output_of_node(instance, name)
        return _of_output(output, path, instance.derivations, store)
    digest_text, dot, output_name = name.partition(".")
    digest = Digest.parse(digest_text)
    if store.has_derivation(digest):
        derivations = _below(digest, store)
        output = _output_of(derivations[digest], digest, output_name if dot else None)
        return _of_output(output, path, derivations, store)
    if not dot and store.has_tree(digest):
        return _source(digest_text, None, digest, path, store)
    blob = None if dot or path else _blob(digest, store)
    if blob is None:
        what = "no derivation" if dot else "neither a tree nor a derivation nor a file"
        raise MissingObjectError(f"{what} in the store", file=digest_text)
    return blob


def _blob(digest: Digest, store: LocalStore) -> Source | None:
    """The bytes of some file; None where the store has no such."""
    size_bytes = store.blob_size(digest)
    if size_bytes is None:
        return None
    return Source(
        label=str(digest),
        output=None,
        tree=None,
        file=str(digest),
        content=digest,
        size_bytes=size_bytes,
        files=1,
    )


def get(
    source: Source, dest: Path, store: LocalStore, *, force: bool, kept: Sequence[Path]
) -> None:
    """Write `source` to `dest`: whole or not at all, every byte checked on the way.

    Args:
        source: What is got.
        dest: The new file or folder.
        store: Where it is.
        force: Whether what is at `dest` is replaced.
        kept: Folders that are not replaced, nor what holds them.

    Raises:
        UsageError: Something is at `dest` that may not be replaced.
        CorruptObjectError: An object's bytes changed; `dest` is as it was.
    """
    with placed(dest, lambda: check_place(dest, force=force, kept=kept)) as made:
        _write(source, made, store)


@contextmanager
def checked_file(source: Source, store: LocalStore) -> Iterator[Path]:
    """A file of one's own with the bytes of `source`, all of them checked; it goes again.

    Raises:
        UsageError: It is a folder.
        CorruptObjectError: An object's bytes changed.
    """
    if source.file is None:
        raise UsageError(
            "a folder cannot be written to stdout",
            file=source.label,
            advice="Name one file in it behind a slash, or a new folder.",
        )
    with TemporaryDirectory(prefix="kolm-get.") as folder:
        made = Path(folder, "made")
        _write(source, made, store)
        yield made


def _write(source: Source, made: Path, store: LocalStore) -> None:
    if source.tree is None:
        store.materialise_blob(source.content, made)
    elif source.file is None:
        store.materialise(source.tree, made)
    else:
        store.materialise_file(source.tree, source.file, made)


def _below(digest: Digest, store: LocalStore) -> Derivations:
    """A derivation and all that it needs."""
    found: dict[Digest, Derivation] = {}

    def needs(one: Digest) -> list[Digest]:
        found[one] = store.derivation(one)
        return [need.derivation for need in found[one].needs]

    closure([digest], needs)
    return found


def _output_of_node(instance: Instance, text: str) -> OutputInput:
    """The output that ``node`` or ``node.output`` names."""
    if text in instance.nodes:
        return _output_of(instance.nodes[text], instance.digests[text], None)
    return instance.find(text)


def _output_of(derivation: Derivation, digest: Digest, name: str | None) -> OutputInput:
    """The output called `name`; where none is named, ``out`` or the only one."""
    names = [one for one, _ in derivation.outputs]
    if name is None and "out" not in names and len(names) > 1:
        raise UsageError(
            "it has several outputs: which one?",
            file=derivation.name,
            expected=" or ".join(f"{derivation.name}.{one}" for one in names),
        )
    chosen = name if name is not None else "out" if "out" in names else names[0]
    if chosen not in names:
        raise UsageError(
            f"{derivation.name} has no such output",
            expected=" or ".join(names),
            actual=repr(chosen)[:80],
        )
    return OutputInput(derivation=digest, output=chosen)


def _of_output(
    output: OutputInput, path: str, derivations: Derivations, store: LocalStore
) -> Source:
    name = derivations[output.derivation].name
    label = f"{name}.{output.output}"
    plans = plan(
        (output,), derivations=derivations, lookup=store.contents_of, present=store.has_trees
    )
    (action,) = (one for one in plans.actions if one.derivation == output.derivation)
    if not isinstance(action, Reuse):
        raise MissingObjectError(
            f"it is not in the store: {action.reason}",
            where=label,
            advice=f"`kolm build {label}` builds it.",
        )
    return _source(label, output, dict(action.contents)[output.output], path, store)


def _source(
    label: str, output: OutputInput | None, tree: Digest, path: str, store: LocalStore
) -> Source:
    """What is at `path` of a tree; the tree where that is empty."""
    names = [name for name in path.split("/") if name]
    file: File | None = None
    for depth, name in enumerate(names):
        entries = dict(store.tree(tree).entries)
        node = entries.get(name)
        if isinstance(node, Folder):
            tree = node.tree
        elif isinstance(node, File) and depth == len(names) - 1:
            file = node
        else:
            raise _no_path(label, "/".join(names[: depth + 1]), name, list(entries))
    size_bytes, files = _size(tree, store) if file is None else (file.size_bytes, 1)
    return Source(
        label="/".join([label, *names]),
        output=output,
        tree=tree,
        file=None if file is None else names[-1],
        content=tree if file is None else file.b3,
        size_bytes=size_bytes,
        files=files,
    )


def _no_path(label: str, path: str, name: str, there: list[str]) -> UsageError:
    near = get_close_matches(name, there, 1) or there[:8]
    return UsageError(
        "there is no such file or folder",
        file=label,
        where=path,
        expected=" or ".join(near) or "nothing: it is empty",
    )


def _size(tree: Digest, store: LocalStore) -> tuple[int, int]:
    """The bytes of a tree's files, and how many there are."""
    size_bytes = files = 0
    for _, node in store.tree(tree).entries:
        if isinstance(node, File):
            size_bytes, files = size_bytes + node.size_bytes, files + 1
        elif isinstance(node, Folder):
            inner_bytes, inner = _size(node.tree, store)
            size_bytes, files = size_bytes + inner_bytes, files + inner
    return size_bytes, files
