"""From a locked project to what it makes: nodes realised, results compared, recorded, written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import kolm_build
from kolm_build.core.derivation import Derivation, OutputInput
from kolm_build.core.digest import Digest
from kolm_build.core.environment import Environment
from kolm_build.core.instantiation.instance import Instance
from kolm_build.core.instantiation.instantiate import instantiate
from kolm_build.core.lock import Lock, check
from kolm_build.core.plan import Plan, plan
from kolm_build.engine.builder import SandboxBuilder, StepBuilder, UnsafeOpenBuilder
from kolm_build.engine.environment import InstalledEnvironment
from kolm_build.engine.events import LogLine, OnEvent
from kolm_build.engine.kernels import LIBRARY, Kernels
from kolm_build.engine.limits import Limits
from kolm_build.engine.probe import default_memory_bytes, probe_platform
from kolm_build.engine.protocol import Substitutes
from kolm_build.engine.rebuilder import Mode
from kolm_build.engine.scheduler import Realised, nothing_offered, realise
from kolm_build.engine.substitution import Lookup
from kolm_build.errors import UsageError
from kolm_build.steps.table import STEPS
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.code import keep_locked_code
from kolm_build.surfaces.environments import FoundEnvironments
from kolm_build.surfaces.kernels import check_kernels
from kolm_build.surfaces.lookup import find_output
from kolm_build.surfaces.project import Project, read_lock, shown_path
from kolm_build.surfaces.sources import keep_local_inputs
from kolm_build.surfaces.story import Storyteller


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to build; nothing of it is in any hash.

    Attributes:
        jobs: Steps at once.
        sandbox: ``require`` or ``none``.
        offline: Never touch the network.
        keep_failed: Keep what failed steps left.
        environment: ``any``: the installed environment, else the stored one. ``stored``: the stored
            one, with the system's libraries that came with it.
        threads: Compute threads of a portable step; None for its share of the processors.
        step_memory_bytes: Memory of a step; None for nearly all that this machine has.
        step_disk_bytes: What a step may write; None for half of what is free.
    """

    jobs: int = 1
    sandbox: Literal["require", "none"] = "require"
    offline: bool = False
    keep_failed: bool = False
    environment: Literal["any", "stored"] = "any"
    threads: int | None = None
    step_memory_bytes: int | None = None
    step_disk_bytes: int | None = None

    @property
    def limits(self) -> Limits:
        """What a step may take.

        Raises:
            UsageError: A limit is asked for where nothing would keep a step to it.
        """
        if self.sandbox == "none" and (self.step_memory_bytes or self.step_disk_bytes):
            raise UsageError(
                "`--step-memory` and `--step-disk` need the sandbox",
                advice="Leave them out, or leave out `--sandbox=none`.",
            )
        return Limits(
            memory_bytes=self.step_memory_bytes or default_memory_bytes(),
            written_bytes=self.step_disk_bytes,
        )

    @property
    def kernels(self) -> Kernels:
        """How portable steps run."""
        share = max(1, len(os.sched_getaffinity(0)) // self.jobs)
        library = Path(kolm_build.__file__).parent / LIBRARY
        return Kernels(library=library, threads=self.threads or share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A project whose inputs and code are in the store.

    Attributes:
        project: The project.
        lock: Its lock.
        instance: Its derivations.
    """

    project: Project
    lock: Lock
    instance: Instance

    def wanted(self, targets: Sequence[str]) -> Mapping[str, OutputInput]:
        """The outputs that `targets` name; those of the recipe where there are none.

        A target that is a node means all its outputs.
        """
        if not targets:
            return self.instance.targets
        found: dict[str, OutputInput] = {}
        for text in targets:
            one = find_output(self.instance, text)
            node = self.instance.derivations[one.derivation]
            names = [name for name, _ in node.outputs] if text == node.name else [one.output]
            for name in names:
                label = node.name if name == "out" else f"{node.name}.{name}"
                found[label] = OutputInput(derivation=one.derivation, output=name)
        return found


def prepare(project: Project, store: LocalStore) -> Prepared:
    """`project` with its local inputs and the steps' code in `store`.

    Raises:
        StaleLockError: It is not locked, or the recipe, an input or the code is not what was.
    """
    file = shown_path(project.lock_file)
    lock = read_lock(project.lock_file)
    check(project.recipe, lock, file=file)
    keep_local_inputs(project.root, lock, store, file=file)
    keep_locked_code(lock, store)
    check_kernels(lock, store)
    story = Storyteller(recipe_text=project.recipe_text, lock=lock, store=store)
    instance = instantiate(
        project.recipe, lock, steps=STEPS, platform=probe_platform(), story=story
    )
    return Prepared(project=project, lock=lock, instance=instance)


def planned(
    prepared: Prepared,
    wanted: Mapping[str, OutputInput],
    store: LocalStore,
    *,
    check: bool,
    substitutes: Substitutes | None = None,
) -> Plan:
    """What `build` would do; with `check`, building again what is there."""
    nodes = prepared.instance.derivations
    again = {digest for digest, node in nodes.items() if check and not node.is_fixed}
    return plan(
        tuple(wanted.values()),
        derivations=nodes,
        lookup=Lookup(store, substitutes),
        present=store.has_trees,
        substitutable=nothing_offered if substitutes is None else substitutes.offered,
        again=again,
    )


def build(
    prepared: Prepared,
    wanted: Mapping[str, OutputInput],
    store: LocalStore,
    *,
    options: Options,
    on_event: OnEvent,
    mode: Mode = "reuse",
    beside: Sequence[LocalStore] = (),
    substitutes: Substitutes | None = None,
) -> Realised:
    """Make `wanted` be in `store`; environments may be in the stores `beside` it."""
    for derivation in prepared.instance.nodes.values():
        if not store.has_derivation(derivation.digest):
            store.put_derivation(derivation)
    unpacking = LogLine(node="environment", text="being unpacked from the store, once")
    with find_environments(
        prepared.lock.environment,
        [store, *beside],
        options=options,
        on_unpack=lambda: on_event(unpacking),
    ) as environments:
        return realise(
            tuple(wanted.values()),
            derivations=prepared.instance.derivations,
            store=store,
            builder=make_builder(environments, store, options=options),
            jobs=options.jobs,
            on_event=on_event,
            mode=mode,
            substitutes=substitutes,
        )


def find_environments(
    environment: Environment,
    stores: Sequence[LocalStore],
    *,
    options: Options,
    on_unpack: Callable[[], None] = lambda: None,
) -> FoundEnvironments:
    """Where steps find the locked `environment`: installed, or in one of `stores`."""
    return FoundEnvironments(
        InstalledEnvironment([environment], memo=stores[0]),
        stores,
        stored_only=options.environment == "stored",
        on_unpack=on_unpack,
    )


def make_builder(
    environments: FoundEnvironments,
    store: LocalStore,
    *,
    options: Options,
    unpinned_network: bool = False,
) -> StepBuilder:
    """The builder that `options` ask for.

    Args:
        environments: Where steps find what is locked.
        store: Where results go.
        options: How to build.
        unpinned_network: Let fetches run whose content is not known yet; for locking.
    """
    kind = SandboxBuilder if options.sandbox == "require" else UnsafeOpenBuilder
    return kind(
        store=store,
        steps=STEPS,
        environments=environments,
        kernels=options.kernels,
        offline=options.offline,
        unpinned_network=unpinned_network,
        keep_failed=_Keeper(store) if options.keep_failed else None,
        limits=options.limits,
    )


@dataclass(frozen=True, slots=True)
class _Keeper:
    """Keeps what a failed step left, as a root that a person removes."""

    store: LocalStore

    def __call__(self, derivation: Derivation, tree: Digest) -> None:
        self.store.add_root(f"failed-{derivation.name}-{tree.hex[:8]}", trees=[tree])
