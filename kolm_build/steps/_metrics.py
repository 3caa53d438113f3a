"""The table of a training's figures, one row for each optimiser step (spec/algorithms.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

_LOGGED = ("loss", "learning_rate", "grad_norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Figures by optimiser step.

    Attributes:
        columns: Their names.
        rows: For each step, from 1, its values; text holds no comma, quote or line end.
    """

    columns: tuple[str, ...]
    rows: Sequence[Sequence[float | str]]

    @property
    def shown(self) -> tuple[tuple[str, ...], ...]:
        """The rows as text."""
        return tuple(tuple(map(_shown, row)) for row in self.rows)

    def csv(self) -> bytes:
        """The table as CSV (RFC 4180, line feeds): each number as the shortest that reads back."""
        lines = [",".join(("step", *self.columns))]
        lines += [",".join((str(step), *row)) for step, row in enumerate(self.shown, start=1)]
        return "".join(line + "\n" for line in lines).encode()


class MetricsCallback(TrainerCallback):
    """Notes the figures of every optimiser step.

    Args:
        trainer: Whose `step_figures` it reads, if it has any.
        figures: Their names.
        notes: Names of its `step_notes`, which are text.
        before: The rows of the steps before, as text.
    """

    def __init__(
        self,
        trainer: Any,
        figures: tuple[str, ...],
        notes: tuple[str, ...] = (),
        before: Sequence[Sequence[str]] = (),
    ) -> None:
        self._trainer = trainer
        self._figures = figures
        self._notes = notes
        self._rows: list[list[float | str]] = [list(row) for row in before]

    @property
    def metrics(self) -> Metrics:
        """The table so far."""
        columns = (*_LOGGED, *self._figures, *self._notes)
        return Metrics(columns=columns, rows=self._rows)

    def on_log(
        self,
        _args: Any,
        _state: Any,
        _control: Any,
        logs: dict[str, float] | None = None,
        **_others: Any,
    ) -> None:
        """Note one optimiser step."""
        if logs is None or "loss" not in logs:  # the last log is about wall clocks
            return
        own = [self._trainer.step_figures[name] for name in self._figures]
        notes = [self._trainer.step_notes[name] for name in self._notes]
        self._rows.append([*(float(logs[name]) for name in _LOGGED), *own, *notes])


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else repr(value)
