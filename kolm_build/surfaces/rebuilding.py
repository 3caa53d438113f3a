"""Building again from nothing, and comparing with what was built first.

From a project, or from what an artifact says of itself: its recipe, lock, local sources and code
are taken out of the verified file, and everything is built in a store that was empty before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from kolm_build.attest.container import Container
from kolm_build.attest.verify import verify_container
from kolm_build.core import cbor, story
from kolm_build.core.derivation import Derivation, OutputInput
from kolm_build.core.digest import Blob, Digest
from kolm_build.core.instantiation.instance import PACKAGE
from kolm_build.core.instantiation.instantiate import instantiate
from kolm_build.core.lock import check, parse_lock
from kolm_build.core.numerics import Platform
from kolm_build.core.recipe import parse_recipe
from kolm_build.engine.probe import probe_platform
from kolm_build.engine.scheduler import Realised
from kolm_build.errors import ContentError, NotReproducibleError, UsageError
from kolm_build.steps.table import STEPS
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.building import Prepared
from kolm_build.surfaces.compare import (
    PathChange,
    changes_between,
    side_of_artifact,
    side_of_tree,
)
from kolm_build.surfaces.kernels import check_kernels
from kolm_build.surfaces.project import Project, read_lock
from kolm_build.surfaces.results import Targets, entries_of, expected_outputs
from kolm_build.surfaces.story import CODE, SOURCES, Storyteller, local_inputs
from kolm_build.surfaces.trees import keep

BUILD = "build/"

# Which node made a member, where the first build's store is not here to say it better.
_MAKERS = (
    ("eval/holdout", "dataset"),
    ("eval/base-", "base-evaluation"),
    ("model/", "the last model"),
    ("eval/results", "evaluation"),
    ("eval/summary", "evaluation"),
    ("eval/kscore", "score"),
    ("eval/full-kscore", "full-score"),
    ("eval/full-", "full-evaluation"),
    ("eval/quantisation", "quantise"),
    ("eval/gate", "gate"),
    ("build/", "the story"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The first thing that differs.

    Attributes:
        node: The node, or what made it as far as is known.
        output: The output; None where it is a member of an artifact.
        before: What it was.
        after: What it is now.
        change: The first path that differs, where both can be read.
    """

    node: str
    output: str | None
    before: str
    after: str
    change: PathChange | None = None

    def error(self) -> NotReproducibleError:
        """The error that says so."""
        where = self.node if self.output is None else f"{self.node}.{self.output}"
        place = "" if self.change is None else f", first in {self.change.path}"
        if self.change is not None and self.change.tensors:
            place += f", tensor {self.change.tensors[0]}"
        return NotReproducibleError(
            f"rebuilt, it is not the same{place}",
            where=where,
            expected=self.before,
            actual=self.after,
        )


@contextmanager
def fresh_store(given: Path | None) -> Iterator[LocalStore]:
    """A store that was empty before: `given`, or one that is thrown away.

    Raises:
        UsageError: `given` is not empty.
    """
    if given is not None:
        if given.exists() and any(given.iterdir()):
            raise UsageError(
                "a rebuild needs a new store", file=str(given), advice="Name an empty folder."
            )
        with LocalStore.open(given) as store:
            yield store
        return
    with (
        TemporaryDirectory(prefix="kolm-rebuild-") as folder,
        LocalStore.open(Path(folder, "store")) as store,
    ):
        yield store


def prepare_artifact(container: Container, store: LocalStore) -> Prepared:
    """The project that an artifact tells of, its sources and code in `store`.

    Raises:
        VerificationError: The artifact does not hold, or its story is not what its lock names.
    """
    verify_container(container, trust=None)
    files = _story_files(container)
    recipe_text, lock_text = files[story.RECIPE], files[story.LOCK]
    lock = parse_lock(lock_text.decode(), file=BUILD + story.LOCK)
    recipe = parse_recipe(
        recipe_text.decode(), file=BUILD + story.RECIPE, numerics_class=lock.numerics.cls
    )
    check(recipe, lock, file=BUILD + story.LOCK)
    for one in local_inputs(lock):
        _keep_named(files, f"{SOURCES}/{one.name}/", one.tree, store)
    for step, tree in lock.code.items():
        _keep_named(files, f"{CODE}/{step}/", tree, store)
    check_kernels(lock, store)
    nowhere = Path("/nowhere")  # what it tells is in the store; no path of it is ever opened
    project = Project(
        root=nowhere, recipe=recipe, recipe_text=recipe_text, lock_file=nowhere / story.LOCK
    )
    teller = Storyteller(recipe_text=recipe_text, lock=lock, store=store)
    platform = _platform(files) or probe_platform()
    instance = instantiate(recipe, lock, steps=STEPS, platform=platform, story=teller)
    return Prepared(project=project, lock=lock, instance=instance)


def bring_fetched(prepared: Prepared, store: LocalStore, other: LocalStore) -> None:
    """Copy what the lock fetched from `other`, as far as it is there: by digest, so checked."""
    nodes = prepared.instance.nodes.values()
    bring((one for node in nodes for _, one in node.outputs if one is not None), store, other)


def bring_code(project: Project, store: LocalStore, other: LocalStore) -> None:
    """Copy the code that the lock names from `other`, as far as it is there.

    So code of another kolm, which came in a pack, runs as it was locked.
    """
    bring(read_lock(project.lock_file).code.values(), store, other)


def bring(trees: Iterable[Digest], store: LocalStore, other: LocalStore) -> None:
    """Copy those of `trees` that `other` has to `store`: by digest, so checked."""
    for tree in trees:
        if store.has_tree(tree) or not other.has_tree(tree):
            continue
        with store.scratch() as scratch:
            other.materialise(tree, scratch / "tree")
            store.ingest(scratch / "tree")


def compare_artifact(
    container: Container, realised: Realised, prepared: Prepared, stores: Stores
) -> str:
    """The artifact id, if the rebuilt artifact has the very same one.

    Raises:
        NotReproducibleError: It has not; the first thing that differs is named.
    """
    output = OutputInput(derivation=prepared.instance.digests[PACKAGE], output="out")
    with TemporaryDirectory(prefix="kolm-rebuild-") as folder:
        stores.new.materialise(realised.contents[output], Path(folder, "out"))
        made = Path(folder, "out", f"{prepared.project.recipe.name}.kolm")
        with Container.open(made) as again:
            if again.manifest_bytes == container.manifest_bytes:
                return str(Blob.of(container.manifest_bytes).sha256)
            found = _first_node(prepared, realised, stores) or _first_member(container, again)
            raise found.error()


def compare_project(
    prepared: Prepared, wanted: Targets, realised: Realised, stores: Stores
) -> Mapping[str, Digest]:
    """The rebuilt results, if they are what was built first.

    What was built first is in `kolm.outputs`, or else in the user's own store.

    Raises:
        NotReproducibleError: They are not; the first thing that differs is named.
        UsageError: Nobody knows what was built first.
    """
    known = expected_outputs(prepared.project)
    results = {}
    for entry in entries_of(prepared.instance, wanted, realised.contents):
        expected = known.find(entry.target, entry.output, entry.platform, entry.derivation)
        first: tuple[Digest, ...] = () if expected is None else (expected,)
        first = first or _claimed(realised, entry.derivation, entry.output, stores.old)
        found = None if entry.tree in first else _first_node(prepared, realised, stores)
        if found is not None:
            raise found.error()
        if not first:
            raise UsageError(
                "it was rebuilt, and there is nothing to compare it with",
                file=entry.target,
                actual=str(entry.tree),
                advice="`kolm build --record` notes results in kolm.outputs.",
            )
        if entry.tree not in first:
            raise Found(
                node=entry.target,
                output=entry.output,
                before=str(first[0]),
                after=str(entry.tree),
            ).error()
        results[f"{entry.target}.{entry.output}"] = entry.tree
    return results


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """The store of the rebuild and, where there is one, that of the first build."""

    new: LocalStore
    old: LocalStore | None


def _story_files(container: Container) -> Mapping[str, bytes]:
    return {
        path.removeprefix(BUILD): container.checked(path, entry.size)
        for path, entry in container.entries.items()
        if path.startswith(BUILD)
    }


def _keep_named(files: Mapping[str, bytes], prefix: str, tree: Digest, store: LocalStore) -> None:
    inner = {
        path.removeprefix(prefix): data for path, data in files.items() if path.startswith(prefix)
    }
    found = keep(inner, store)
    if found != tree:
        raise ContentError(
            "the story does not hold what the lock names",
            file=BUILD + prefix,
            expected=str(tree),
            actual=str(found),
        )


def _platform(files: Mapping[str, bytes]) -> Platform | None:
    """The platform that the story's derivations are pinned to."""
    for path, data in files.items():
        if path.startswith(story.DERIVATIONS):
            platform = Derivation.from_value(cbor.decode(data)).platform
            if platform is not None:
                return platform
    return None


def _first_node(prepared: Prepared, realised: Realised, stores: Stores) -> Found | None:
    """The first node whose content is not what the old store claims; None where none is known."""
    if stores.old is None:
        return None
    for name, digest in prepared.instance.digests.items():
        for output, _ in prepared.instance.nodes[name].outputs:
            now = realised.contents.get(OutputInput(derivation=digest, output=output))
            first = _claimed(realised, digest, output, stores.old)
            if now is not None and first and now not in first:
                change = _first_change(first[0], now, stores)
                return Found(
                    node=name,
                    output=output,
                    before=str(first[0]),
                    after=str(now),
                    change=change,
                )
    return None


def _claimed(
    realised: Realised, derivation: Digest, output: str, store: LocalStore | None
) -> tuple[Digest, ...]:
    key = realised.keys.get(derivation)
    if store is None or key is None:
        return ()
    return store.contents_of([(key, output)]).get((key, output), ())


def _first_change(before: Digest, after: Digest, stores: Stores) -> PathChange | None:
    if stores.old is None or not stores.old.has_tree(before):
        return None
    old, new = side_of_tree(before, stores.old), side_of_tree(after, stores.new)
    return next(changes_between(old, new), None)


def _first_member(container: Container, again: Container) -> Found:
    """The first member, in the order in which a build makes them, that differs."""
    found = list(changes_between(side_of_artifact(container), side_of_artifact(again)))
    found.sort(key=lambda change: _rank(change.path))
    first = found[0] if found else None
    return Found(
        node=_maker(first.path) if first else PACKAGE,
        output=None,
        before=str(Blob.of(container.manifest_bytes).sha256),
        after=str(Blob.of(again.manifest_bytes).sha256),
        change=first,
    )


def _rank(path: str) -> int:
    starts = [start for start, _ in _MAKERS]
    return next((at for at, start in enumerate(starts) if path.startswith(start)), len(starts))


def _maker(path: str) -> str:
    return next((maker for start, maker in _MAKERS if path.startswith(start)), PACKAGE)
