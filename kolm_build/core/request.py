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
from kolm_build.core.numerics import Numerics

VERSION = 1

EXIT_OK = 0
EXIT_REFUSED = 10
"""The step refused its input: an ``error`` event says why."""


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
    """

    step: str
    params: Mapping[str, str | int]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    scratch: str
    numerics: Numerics
    events_fd: int

    def encode(self) -> bytes:
        """The request file's bytes."""
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
        )
        fields.done()
        return made
