"""Looking at a project without building or writing anything: nodes, contents, logs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from kolm_build.core.derivation import Derivation, OutputInput
from kolm_build.core.digest import Digest
from kolm_build.core.instantiation.instance import Instance
from kolm_build.core.instantiation.instantiate import instantiate
from kolm_build.core.lock import Lock, check
from kolm_build.core.plan import Plan, plan
from kolm_build.engine.joblog import log_of
from kolm_build.engine.probe import probe_platform
from kolm_build.errors import MissingObjectError, UsageError
from kolm_build.steps.table import STEPS
from kolm_build.surfaces.project import Project, read_lock, shown_path
from kolm_build.surfaces.story import Storyteller

if TYPE_CHECKING:
    from kolm_build.store.local import LocalStore


@dataclass(frozen=True, kw_only=True)
class Look:
    """A project, its lock, and what both describe.

    Attributes:
        project: The project.
        lock: Its lock, which belongs to the recipe.
        instance: Their derivations.
    """

    project: Project
    lock: Lock
    instance: Instance

    @classmethod
    def at(cls, project: Project) -> Look:
        """What `project` describes.

        Raises:
            StaleLockError: It is not locked, or the recipe changed since.
        """
        lock = read_lock(project.lock_file)
        check(project.recipe, lock, file=shown_path(project.lock_file))
        return cls(project=project, lock=lock, instance=instance_of(project, lock))

    @cached_property
    def names(self) -> Mapping[Digest, str]:
        """Derivation to node name."""
        return {digest: name for name, digest in self.instance.digests.items()}

    def node(self, text: str) -> Derivation:
        """The node that ``node`` or ``node.output`` names."""
        return self.instance.derivations[find_output(self.instance, text).derivation]

    def content(self, text: str, store: LocalStore) -> Digest:
        """The content of the output that `text` names.

        Raises:
            MissingObjectError: It was never built.
        """
        output = find_output(self.instance, text)
        found = self.plan(store).contents.get(output)
        if found is None:
            raise MissingObjectError(
                "it was never built here", where=text, advice="`kolm build` builds it."
            )
        return found

    def log(self, text: str, store: LocalStore) -> bytes | None:
        """The log of a node's build, or of the last that failed; None where there was none."""
        output = find_output(self.instance, text)
        resolved = self.plan(store).resolved.get(output.derivation)
        return None if resolved is None else log_of(store, resolved, output.output)

    def path(self, above: str, below: str) -> tuple[tuple[str, str], ...]:
        """A shortest way from the node `above` to one it depends on.

        Returns:
            (node, role) pairs, `above` first with an empty role; nothing where there is no way.
        """
        start, goal = self.node(above).name, self.node(below).name
        came: dict[str, tuple[str, str]] = {start: ("", "")}
        todo = deque([start])
        while todo and goal not in came:
            name = todo.popleft()
            for role, need in self._needs(name):
                if need not in came:
                    came[need] = (name, role)
                    todo.append(need)
        return _walked_back(came, goal) if goal in came else ()

    def _needs(self, name: str) -> Iterator[tuple[str, str]]:
        """The (role, node) pairs that the node `name` takes inputs from."""
        for role, value in self.instance.nodes[name].inputs:
            if isinstance(value, OutputInput):
                yield role, self.names[value.derivation]

    def plan(self, store: LocalStore) -> Plan:
        """What is known of every output of every node."""
        outputs = tuple(
            OutputInput(derivation=self.instance.digests[name], output=output)
            for name, node in self.instance.nodes.items()
            for output, _ in node.outputs
        )
        return self._plan(outputs, store)

    def plan_targets(self, store: LocalStore) -> Plan:
        """What a build of the recipe's targets would do."""
        return self._plan(tuple(self.instance.targets.values()), store)

    def _plan(self, wanted: tuple[OutputInput, ...], store: LocalStore) -> Plan:
        return plan(
            wanted,
            derivations=self.instance.derivations,
            lookup=store.contents_of,
            present=store.has_trees,
        )


def instance_of(project: Project, lock: Lock) -> Instance:
    """The derivations of `project` under `lock`, on this machine."""
    story = Storyteller(recipe_text=project.recipe_text, lock=lock)
    return instantiate(project.recipe, lock, steps=STEPS, platform=probe_platform(), story=story)


def find_output(instance: Instance, text: str) -> OutputInput:
    """The output that `text` names: ``node.output``, or ``node`` for its first one.

    Raises:
        UsageError: There is none; it says so where an artifact was meant.
    """
    if text.endswith(".kolm"):
        raise UsageError("no such file", file=text)
    return instance.find(_plain(instance, text))


def _plain(instance: Instance, text: str) -> str:
    """`text` with an output: a node without the output ``out`` means its first one."""
    node = instance.nodes.get(text)
    if node is None or "out" in dict(node.outputs):
        return text
    return f"{text}.{node.outputs[0][0]}"


def _walked_back(came: Mapping[str, tuple[str, str]], goal: str) -> tuple[tuple[str, str], ...]:
    path = []
    name = goal
    while name:
        before, role = came[name]
        path.append((name, role))
        name = before
    return tuple(reversed(path))
