"""Runs a training up to one optimiser step and logs that step's operations (spec/bisect.md).

``python -m kolm_build.steps._replay REQUEST STEP [OPERATION]``: a process that `kolm bisect`
starts, once for each side. REQUEST is a request of the step protocol whose output ``replay`` takes
the trace so far, the log, and the tensors of OPERATION where one is named.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from kolm_build.core import strict_json
from kolm_build.core.request import StepRequest
from kolm_build.errors import InvalidRecordError, UsageError
from kolm_build.numerics.apply import applied_as
from kolm_build.numerics.op_trace import OpTrace
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import output_folder
from kolm_build.steps._stage import Stage, Take, train
from kolm_build.steps.table import STEPS


def main(argv: list[str]) -> int:
    """The process's exit status."""
    program, request, *numbers = argv
    step, watch = _numbers(numbers)

    def run(request: StepRequest, events: Events) -> None:
        replay(request, events, step=step, watch=watch)

    return run_step([program, request], run, within=applied_as)


def replay(request: StepRequest, events: Events, *, step: int, watch: int | None) -> None:
    """Train until `step` is done, logging its operations, and write what came of it.

    Raises:
        InvalidRecordError: The training has no such step.
    """
    watcher = StepWatcher(step, watch)
    training = train(request, events, Stage.parse(request.params, _take(request.step)), [watcher])
    traced = watcher.traced
    if traced is None:
        raise InvalidRecordError("the training has no such step", where=f"step {step}")
    out = output_folder(request, "replay")
    for name, data in training.trace.files().items():
        (out / name).write_bytes(data)
    (out / "ops.jsonl").write_bytes(b"".join(one.to_line() for one in traced.operations))
    if watch is not None:
        _write_operation(out, traced)


class StepWatcher(TrainerCallback):
    """Traces the operations of one optimiser step, and ends the training after it.

    Args:
        step: The step, from 1.
        watch: The operation to keep; None for none.
    """

    def __init__(self, step: int, watch: int | None) -> None:
        self._step = step
        self._watch = watch
        self.traced: OpTrace | None = None

    def on_step_begin(
        self, _args: Any, state: Any, _control: Any, model: torch.nn.Module, **_others: Any
    ) -> None:
        """Start to trace."""
        if state.global_step == self._step - 1:
            self.traced = OpTrace(model, watch=self._watch)
            self.traced.__enter__()

    def on_step_end(self, _args: Any, state: Any, control: Any, **_others: Any) -> None:
        """Stop to trace."""
        if state.global_step == self._step and self.traced is not None:
            self.traced.__exit__(None, None, None)
            control.should_training_stop = True


def _take(step: str) -> Take:
    """Reads the parameters of the objective that `step` minimises."""
    module = importlib.import_module(f"kolm_build.steps.{STEPS[step].module}")
    return module.TAKE


def _write_operation(out: Path, traced: OpTrace) -> None:
    if traced.origin is None:
        raise InvalidRecordError("the step has no such operation", where="operation")
    tensors = [
        {"role": one.role, "dtype": one.dtype, "shape": list(one.shape)} for one in traced.tensors
    ]
    told = {"origin": traced.origin.to_value(), "tensors": tensors}
    (out / "operation.json").write_bytes(strict_json.dumps(told))
    for index, one in enumerate(traced.tensors):
        (out / f"tensor-{index}").write_bytes(one.data)


def _numbers(texts: Sequence[str]) -> tuple[int, int | None]:
    if not 1 <= len(texts) <= 2 or not all(text.isascii() and text.isdigit() for text in texts):
        raise UsageError("not a replay", expected="REQUEST STEP [OPERATION]")
    return int(texts[0]), int(texts[1]) if len(texts) == 2 else None


if __name__ == "__main__":
    sys.exit(main(sys.argv))
