"""An instance in the making: the nodes so far, and what a step's name stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from kolm_build.core import lock_version_1
from kolm_build.core.bounded import unknown_name
from kolm_build.core.derivation import ContentInput, Derivation, Input, OutputInput, Param
from kolm_build.core.digest import Digest
from kolm_build.core.generic_step import NodeOutput
from kolm_build.core.instantiation.instance import output_of
from kolm_build.core.lock import Lock
from kolm_build.core.numerics import Numerics, Platform
from kolm_build.core.recipe import Recipe
from kolm_build.errors import StaleLockError

EXACT = Numerics(cls="exact-1")


class StepShape(Protocol):
    """What instantiation must know of a step."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of its outputs."""

    @property
    def network(self) -> bool:
        """Whether it reaches the network; then its output must be locked."""

    @property
    def environment(self) -> bool:
        """Whether it sees the installed distributions."""

    @property
    def numerics(self) -> str:
        """``exact-1``, or ``inherit`` for the recipe's class."""


Steps = Mapping[str, StepShape]


class Draft:
    """An instance in the making: its nodes so far.

    Args:
        recipe: What is made.
        lock: Its lock.
        steps: The table of steps.
        platform: The machine that `native-1` steps are pinned to.
    """

    __slots__ = (
        "code",
        "contents",
        "digests",
        "environment",
        "lock",
        "locked",
        "nodes",
        "numerics",
        "platform",
        "steps",
    )

    def __init__(self, *, recipe: Recipe, lock: Lock, steps: Steps, platform: Platform) -> None:
        self.lock = lock
        self.locked = {one.name: one for one in lock.inputs}
        self.code = lock.code
        self.environment = lock.environment.digest
        self.numerics = recipe.numerics
        self.platform = platform if recipe.numerics.cls == "native-1" else None
        self.steps = steps
        self.nodes: dict[str, Derivation] = {}
        self.digests: dict[str, Digest] = {}
        self.contents: dict[Digest, str] = {}

    def add(
        self,
        name: str,
        step: str,
        *,
        inputs: Mapping[str, Input],
        params: Mapping[str, Param],
        outputs: Sequence[str] = (),
        expect: Digest | None = None,
    ) -> NodeOutput:
        """Add the node `name`; a reference to its output ``out``."""
        shape, code = self.shape(name, step)
        inherits = shape.numerics == "inherit"
        derivation = Derivation(
            name=name,
            step=step,
            code=code,
            environment=self.environment if shape.environment else None,
            params=tuple(sorted(params.items())),
            inputs=tuple(sorted(inputs.items())),
            outputs=tuple((output, expect) for output in sorted(outputs or shape.outputs)),
            numerics=self.numerics if inherits else EXACT,
            platform=self.platform if inherits else None,
        )
        self.nodes[name] = derivation
        self.digests[name] = derivation.digest
        return NodeOutput(node=name)

    def add_present(
        self,
        name: str,
        step: str,
        *,
        inputs: Mapping[str, Input],
        params: Mapping[str, Param],
        outputs: Sequence[str] = (),
    ) -> None:
        """Add the node `name` of a step that was another when the lock's version was the first."""
        if self.lock.version == 1:
            params = lock_version_1.params(step, params)
            outputs = lock_version_1.OUTPUTS.get(step, outputs)
        self.add(name, step, inputs=inputs, params=params, outputs=outputs)

    def shape(self, name: str, step: str) -> tuple[StepShape, Digest]:
        """The shape and the locked code of `step`."""
        if step not in self.steps:
            raise unknown_name("step", step, self.steps, where=f"{name}.step")
        if step not in self.code:
            raise StaleLockError(
                "a step whose code is not locked", where=f"code {step}", advice="Run `kolm lock`."
            )
        return self.steps[step], self.code[step]

    def node(self, reference: NodeOutput) -> OutputInput:
        """The input that an output of an earlier node is."""
        return output_of(self.nodes, self.digests, reference)

    def local(self, name: str) -> ContentInput:
        """The input that the locked path `name` is."""
        locked = self.lock.input(name) if name not in self.locked else self.locked[name]
        self.contents[locked.tree] = locked.source
        return ContentInput(content=locked.tree)
