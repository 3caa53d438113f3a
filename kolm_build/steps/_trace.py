"""What the sft step notes of every optimiser step (spec/trace.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from kolm_build.core import cbor, strict_json
from kolm_build.core.digest import Digest
from kolm_build.core.request import StepRequest
from kolm_build.core.trace import Trace
from kolm_build.errors import StepFailedError
from kolm_build.numerics.state import generator_digest, optimiser_digest, tensors_digest
from kolm_build.steps._entry import Events

_FIGURES = ("grad_norm", "learning_rate", "loss")


class TraceCallback(TrainerCallback):
    """The trace of a run, and its events; it stops a run that diverges.

    Args:
        request: The step's request.
        columns: The rows as `tokenise` makes them.
        events: Takes the progress.
        before: The trace of the steps before, where the training goes on from a checkpoint.
    """

    def __init__(
        self,
        request: StepRequest,
        columns: Mapping[str, Sequence[Sequence[int]]],
        events: Events,
        before: Trace | None = None,
    ) -> None:
        self._request = request
        self._columns = columns
        self._events = events
        self._before = before
        self._start: Mapping[str, object] = {}
        self._lines: list[bytes] = [] if before is None else list(before.lines)
        self.rows: list[int] = []
        """Numbers of the rows of the step that runs; the trainer fills it."""

    @property
    def trace(self) -> Trace:
        """The trace so far."""
        return Trace(start=self._start, lines=tuple(self._lines))

    def on_train_begin(
        self, _args: Any, _state: Any, _control: Any, model: torch.nn.Module, **_others: Any
    ) -> None:
        """Note what the training begins with; of one that goes on, what it began with."""
        if self._before is not None:
            self._start = {**self._before.start, "params": dict(self._request.params)}
            return
        trained, frozen = _parameters(model, trained=True), _parameters(model, trained=False)
        rows = cbor.encode({name: list(map(list, ids)) for name, ids in self._columns.items()})
        self._start = {
            "frozen": str(tensors_digest(frozen.items())),
            "generator": str(generator_digest()),
            "numerics": self._request.numerics.to_value(),
            "parameters": str(tensors_digest(trained.items())),
            "params": dict(self._request.params),
            "rows": str(Digest.of_blob(rows)),
        }

    def on_log(
        self,
        _args: Any,
        state: Any,
        _control: Any,
        logs: dict[str, float] | None = None,
        **others: Any,
    ) -> None:
        """Note one optimiser step."""
        if logs is None or "loss" not in logs:  # the last log is about wall clocks
            return
        figures = {name: float(logs[name]) for name in _FIGURES}
        for name, value in figures.items():
            if not math.isfinite(value):
                raise diverged(f"step {state.global_step}: {name}", actual=str(value))
        loss = f"{figures['loss']:.4f}"
        line = {
            **{name: value.hex() for name, value in figures.items()},
            **_digests(others["model"], others["optimizer"]),
            "loss_decimal": loss,
            "rows": list(self.rows),
            "step": state.global_step,
        }
        self._lines.append(strict_json.dumps(line))
        self._events.progress(state.global_step, state.max_steps, unit="step", loss=loss)


def diverged(where: str, *, actual: str) -> StepFailedError:
    """The error of a training that computes what is not a number."""
    return StepFailedError(
        "training diverged: a value is not a finite number",
        where=where,
        actual=actual,
        advice="Lower learning_rate, or raise warmup_steps.",
    )


def _digests(model: torch.nn.Module, optimiser: Any) -> dict[str, str]:
    trained = _parameters(model, trained=True)
    names = {parameter: name for name, parameter in trained.items()}
    return {
        "generator": str(generator_digest()),
        "optimiser": str(optimiser_digest(optimiser, names)),
        "parameters": str(tensors_digest(trained.items())),
    }


def _parameters(model: torch.nn.Module, *, trained: bool) -> dict[str, torch.Tensor]:
    """The parameters, and with those that are not trained the buffers, by name."""
    found = {name: one for name, one in model.named_parameters() if one.requires_grad == trained}
    return found if trained else found | dict(model.named_buffers())
