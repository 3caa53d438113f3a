"""From a recipe to its lock: what is here is hashed, what is elsewhere is fetched once.

Minimal: what is locked and comes from elsewhere stays, unless its section of the recipe changed or
an update is asked for. Local sources are always hashed anew; that is what locking them means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kolm_build.core.derivation import Derivation
from kolm_build.core.digest import Digest, Sha256
from kolm_build.core.environment import Environment
from kolm_build.core.instantiation.instantiate import step_names
from kolm_build.core.lock import VERSION, Lock, LockedInput
from kolm_build.core.numerics import Numerics
from kolm_build.core.realisation import Realisation
from kolm_build.core.source import Source
from kolm_build.engine.builder import StepBuilder
from kolm_build.engine.environment import capture
from kolm_build.engine.events import Built, OnEvent
from kolm_build.errors import UsageError
from kolm_build.steps.table import STEPS
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.building import Options, find_environments, make_builder
from kolm_build.surfaces.code import lock_code
from kolm_build.surfaces.kernels import kernels_of
from kolm_build.surfaces.places import RECIPE
from kolm_build.surfaces.project import Project, shown_path
from kolm_build.surfaces.sources import check_rows, local_path, locked_input

ENVIRONMENT = "environment"
CODE = "code"
NUMERICS = "numerics"
FETCH = "fetch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Locking:
    """One run of `kolm lock`.

    Attributes:
        project: What is locked.
        before: Its lock so far; None for a first one.
        update: Names of what is to be looked at anew.
        environment: What to lock as the environment, in the store already; None to keep what is
            locked, or take down what is installed here.
        store: Takes what is fetched and hashed.
        options: How fetches run.
        on_event: Told of fetches.
    """

    project: Project
    before: Lock | None
    update: Sequence[str]
    environment: Environment | None = None
    store: LocalStore
    options: Options
    on_event: OnEvent

    def run(self) -> Lock:
        """The lock.

        Raises:
            UsageError: An update names nothing that is locked.
            NetworkError: A source has to be fetched and cannot be.
        """
        recipe = self.project.recipe
        self._check_update()
        environment = self._environment()
        code = self._code(step_names(recipe, STEPS))
        fetching = _Fetching(
            code=code.get(FETCH), environment=environment, store=self.store, locking=self
        )
        inputs = [self._input(source, fetching) for source in recipe.sources]
        check_rows(recipe, inputs, file=shown_path(self.project.root / RECIPE))
        return Lock(
            name=recipe.name,
            sections=recipe.sections,
            numerics=recipe.numerics,
            environment=environment,
            inputs=tuple(sorted(inputs, key=lambda one: one.name)),
            code=code,
            kernels=self._kernels(code),
            minimum_grade=recipe.minimum_grade,
        )

    def _kernels(self, code: Mapping[str, Digest]) -> Sha256 | None:
        before, numerics = self.before, self.project.recipe.numerics
        found = kernels_of(numerics, code, self.store)
        if found is None and before is not None and before.code == code:
            # Code that was locked elsewhere need not be in this store.
            return before.kernels if before.numerics.cls == numerics.cls else None
        return found

    def _check_update(self) -> None:
        known = {source.name for source in self.project.recipe.sources}
        known |= {ENVIRONMENT, CODE, NUMERICS}
        for name in self.update:
            if name not in known:
                raise UsageError(
                    "nothing of this name is locked",
                    file="kolm lock --update",
                    expected="one of " + ", ".join(sorted(known)),
                    actual=name,
                )

    def _is_kept(self, name: str, section: str) -> bool:
        """Whether what is locked under `name` stays."""
        if self.before is None or name in self.update:
            return False
        now, then = self.project.recipe.sections, self.before.sections
        return section in then and now.get(section) == then[section]

    def _environment(self) -> Environment:
        if self.environment is not None:
            return self.environment
        if self.before is not None and self._is_kept(ENVIRONMENT, ENVIRONMENT):
            return self.before.environment
        return capture(self.project.recipe.distributions, memo=self.store)

    def _code(self, steps: tuple[str, ...]) -> Mapping[str, Digest]:
        before = {} if self.before is None or CODE in self.update else self.before.code
        if self.before is not None and self.before.version != VERSION:
            before = {}  # what steps are given has changed since then, so their code is new too
        kept = {step: before[step] for step in steps if step in before}
        new = tuple(step for step in steps if step not in kept)
        return dict(sorted({**kept, **lock_code(new, self.store)}.items()))

    def _input(self, source: Source, fetching: _Fetching) -> LockedInput:
        if source.is_local:
            tree = self.store.ingest(local_path(self.project.root, source.text))
            return locked_input(source, tree, self.store)
        kept = self._kept_input(source)
        return kept or locked_input(source, fetching.content(source), self.store)

    def _kept_input(self, source: Source) -> LockedInput | None:
        known = {one.name: one for one in self.before.inputs} if self.before else {}
        old = known.get(source.name)
        if old is None or source.name in self.update or old.source != source.text:
            return None
        if source.files and not self._is_kept(source.name, source.section):
            return None  # which files were chosen is not in the lock
        return LockedInput(
            name=old.name,
            kind=source.kind,
            source=old.source,
            licence=source.licence,
            tree=old.tree,
            file_count=old.file_count,
            size_bytes=old.size_bytes,
            files=old.files,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fetching:
    """Runs the step `fetch` on sources whose content is not known yet."""

    code: Digest | None
    environment: Environment
    store: LocalStore
    locking: Locking

    def content(self, source: Source) -> Digest:
        """The content of `source`: fetched, or what an earlier fetch gave."""
        derivation = self._derivation(source)
        key = derivation.resolved_digest
        if source.name not in self.locking.update:
            for stored in reversed(self.store.realisations(key, "out")):
                if self.store.has_tree(stored.realisation.content):
                    return stored.realisation.content
        return self._fetch(derivation, key)

    def _fetch(self, derivation: Derivation, key: Digest) -> Digest:
        on_event = self.locking.on_event
        result = self._builder().build(derivation, derivation, on_event)
        content = result.contents["out"]
        self.store.add_realisation(
            Realisation(resolved=key, output="out", content=content),
            derivation=self.store.put_derivation(derivation),
            circumstances=result.circumstances,
        )
        on_event(
            Built(
                node=derivation.name,
                contents=result.contents,
                fetched=True,
                verified=False,
                wall_ms=result.wall_ms,
            )
        )
        return content

    def _builder(self) -> StepBuilder:
        options = self.locking.options
        environments = find_environments(self.environment, [self.store], options=options)
        return make_builder(environments, self.store, options=options, unpinned_network=True)

    def _derivation(self, source: Source) -> Derivation:
        assert self.code is not None, "a recipe that fetches uses the step fetch"
        params = {"source": source.text}
        if source.files:
            params["files"] = "\n".join(source.files)
        return Derivation(
            name=source.node,
            step=FETCH,
            code=self.code,
            environment=self.environment.digest,
            params=tuple(sorted(params.items())),
            inputs=(),
            outputs=(("out", None),),
            numerics=Numerics(cls="exact-1"),
        )
