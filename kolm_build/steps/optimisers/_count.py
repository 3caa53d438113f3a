"""An optimiser that must know which step it makes, also where a training goes on."""

from __future__ import annotations

from typing import Any, Protocol

from transformers import TrainerCallback


class Counting(Protocol):
    """Has the number of the step that it makes next, from 0."""

    done: int


class Counter(TrainerCallback):
    """Tells an optimiser, before every step, how many were made.

    Args:
        optimiser: Whom.
    """

    def __init__(self, optimiser: Counting) -> None:
        self._optimiser = optimiser

    def on_step_begin(self, _args: Any, state: Any, _control: Any, **_others: Any) -> None:
        """A training that goes on from a checkpoint does not begin at 0."""
        self._optimiser.done = state.global_step
