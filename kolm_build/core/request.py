"""Step protocol v1: what the engine hands a step process (spec/step-protocol.md).

The engine starts the step's own interpreter on ``step.py`` at the root of the step's code tree
with one argument, the path of a file that holds this record. The step writes below each output
path and events as JSON lines to the descriptor `events_fd`. This module needs the standard
library alone, so that a step can run without any distribution installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from kolm_build.core import cbor
from kolm_build.core.fields import Fields
from kolm_build.core.numerics import PORTABLE, Numerics
from kolm_build.errors import InvalidRecordError

VERSION = 1

EXIT_OK = 0
EXIT_REFUSED = 10
"""The step refused its input: an ``error`` event says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """How a portable step is run here: nothing of it may change a byte, nothing of it is hashed.

    Attributes:
        kernels: Path of the library with the compiled kernels.
        threads: Compute threads.
        isa: The kernels' instruction set; the best of the machine where None.
    """

    kernels: str
    threads: int
    isa: str | None = None

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise InvalidRecordError(
                "out of range", where="threads", expected="1 or more", actual=str(self.threads)
            )

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        chosen = {} if self.isa is None else {"isa": self.isa}
        return {"kernels": self.kernels, "threads": self.threads, **chosen}

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`; a later engine may say more, which changes no byte either."""
        fields = Fields(value)
        return cls(
            kernels=fields.text("kernels"),
            threads=fields.integer("threads"),
            isa=fields.text("isa") if fields.has("isa") else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRequest:
    """One step to run.

    Attributes:
        step: The step's name.
        params: The derivation's parameters.
        inputs: Role to the absolute path of a folder, read-only.
        outputs: Output name to the absolute path of an empty folder to fill.
        scratch: An empty folder that is thrown away.
        numerics: How to compute.
        events_fd: Open descriptor for events.
        circumstances: How a step of the class `portable-1` runs here; None in every other class.
    """

    step: str
    params: Mapping[str, str | int]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    scratch: str
    numerics: Numerics
    events_fd: int
    circumstances: Circumstances | None = None

    def __post_init__(self) -> None:
        if (self.circumstances is not None) != (self.numerics.cls == PORTABLE):
            raise InvalidRecordError(
                f"circumstances belong to the class {PORTABLE}, and it to them",
                where="circumstances",
                actual=self.numerics.cls,
            )

    def encode(self) -> bytes:
        """The request file's bytes."""
        circumstances = self.circumstances
        return cbor.encode(
            {
                "v": VERSION,
                "step": self.step,
                "params": dict(self.params),
                "inputs": dict(self.inputs),
                "outputs": dict(self.outputs),
                "scratch": self.scratch,
                "numerics": self.numerics.to_value(),
                "events_fd": self.events_fd,
            }
            | ({} if circumstances is None else {"circumstances": circumstances.to_value()})
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The inverse of `encode`, strict."""
        fields = Fields(cbor.decode(data))
        fields.version(VERSION)
        made = cls(
            step=fields.text("step"),
            params=fields.table("params"),  # type: ignore[arg-type]  # checked by the derivation
            inputs=fields.table("inputs"),  # type: ignore[arg-type]
            outputs=fields.table("outputs"),  # type: ignore[arg-type]
            scratch=fields.text("scratch"),
            numerics=fields.record("numerics", Numerics.from_value),
            events_fd=fields.integer("events_fd"),
            circumstances=_circumstances(fields),
        )
        fields.done()
        return made


def _circumstances(fields: Fields) -> Circumstances | None:
    if not fields.has("circumstances"):
        return None
    return fields.record("circumstances", Circumstances.from_value)
