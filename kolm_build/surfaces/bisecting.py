"""Taking two trainings that part to the step, the operation and the element (spec/bisect.md).

The step is found from the traces alone. For the operation the training is run again up to that
step, once in the surroundings of each side, in processes of their own; this module starts them,
compares what they log, and knows no framework.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import kolm_build
from kolm_build.core import strict_json
from kolm_build.core.bisect import (
    Finding,
    Operation,
    Origin,
    Tensor,
    first_element,
    first_operation,
    read_log,
)
from kolm_build.core.fields import Fields
from kolm_build.core.numerics import PORTABLE, Numerics
from kolm_build.core.request import EXIT_OK, Circumstances, StepRequest
from kolm_build.core.trace import (
    HEAD_FILE,
    STEPS_FILE,
    Parting,
    Trace,
    beginnings,
    parting,
)
from kolm_build.engine.kernels import LIBRARY
from kolm_build.errors import InvalidRecordError, StepFailedError, UsageError

MODULE = "kolm_build.steps._replay"

OnStep = Callable[[str, int, int], None]
"""Told the side, the steps that are done and how many there will be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What one side is run again in; nothing of it may change a bit in `portable-1`.

    Attributes:
        python: The interpreter, with the libraries of that side.
        threads: Compute threads of a portable step.
        isa: Instruction set of a portable step; the machine's best where None.
        kernels: The compiled kernels of a portable step.
        environment: Further variables, such as ``ATEN_CPU_CAPABILITY``.
    """

    python: str = sys.executable
    threads: int = 1
    isa: str | None = None
    kernels: str = str(Path(kolm_build.__file__).parent / LIBRARY)
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Self:
        """The surroundings that ``name=value`` texts describe.

        Raises:
            UsageError: A text is none of ``python=``, ``threads=``, ``isa=``, ``kernels=`` and
                upper-case variables.
        """
        made = cls()
        for text in texts:
            name, _, value = text.partition("=")
            if name == "python" and value:
                made = replace(made, python=value)
            elif name == "kernels" and value:
                made = replace(made, kernels=value)
            elif name == "threads" and value.isascii() and value.isdigit() and int(value):
                made = replace(made, threads=int(value))
            elif name == "isa" and value:
                made = replace(made, isa=value)
            elif name.isupper() and "=" in text:
                made = replace(made, environment={**made.environment, name: value})
            else:
                raise UsageError(
                    "not a setting of a side",
                    expected="python=FILE, threads=N, isa=NAME, kernels=FILE or VARIABLE=VALUE",
                    actual=repr(text),
                )
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two trainings.

    Attributes:
        name: ``A`` or ``B``.
        trace: Its trace.
        surroundings: What it is run again in.
    """

    name: str
    trace: Trace
    surroundings: Surroundings


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What is known of two trainings.

    Attributes:
        parting: The step in which they part; None where they are equal.
        beginnings: Where they part at the start what differs there, and its value on each side.
        reproduced: For each side that was run again whether that gave its leaf of that step.
        is_traced: Whether both were run again.
        finding: The first operation that differs; None where none does or none was looked for.
    """

    parting: Parting | None
    beginnings: Mapping[str, tuple[object, object]] = field(default_factory=dict)
    reproduced: Mapping[str, bool] = field(default_factory=dict)
    is_traced: bool = False
    finding: Finding | None = None

    def to_value(self) -> dict[str, object]:
        """The report as a JSON object."""
        return {
            "event": "bisected",
            "identical": self.parting is None,
            "parting": None if self.parting is None else self.parting.to_value(),
            "beginnings": {name: list(values) for name, values in self.beginnings.items()},
            "reproduced": dict(self.reproduced),
            "traced": self.is_traced,
            "operation": None if self.finding is None else self.finding.to_value(),
        }


def read_trace(folder: Path) -> Trace:
    """The trace in `folder`.

    Raises:
        UsageError: It has not the two files; an artifact never has.
        InvalidRecordError: They are no trace.
    """
    if folder.suffix == ".kolm":
        raise UsageError(
            "an artifact holds no trace: it holds the model and its evidence",
            file=str(folder),
            expected="the output `trace` of its training, a folder or a digest",
            advice="Where it was built the store has it: `kolm bisect --node NODE`.",
        )
    try:
        head, steps = (folder / HEAD_FILE).read_bytes(), (folder / STEPS_FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            "not the trace of a training",
            file=str(folder),
            expected=f"a folder with {HEAD_FILE} and {STEPS_FILE}: the output `trace` of sft",
        ) from None
    try:
        return Trace.of_files(head, steps)
    except InvalidRecordError as error:
        raise error.in_file(f"{folder}/{error.file}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What two trainings both began with.

    Attributes:
        step: The step that trains.
        inputs: Role to folder: ``model``, ``train`` and what the step needs beside them; empty
            where nobody says them.
    """

    step: str
    inputs: Mapping[str, Path]


def bisect(sides: tuple[Side, Side], begun: Begun, place: Path, on_step: OnStep) -> Report:
    """Find where `sides` part.

    Args:
        sides: The two trainings.
        begun: What both began with; without inputs the search stops at the step.
        place: An empty folder to work in.
        on_step: Is told how far a run is.

    Raises:
        StepFailedError: A run again failed.
        InvalidRecordError: The inputs are not those that a side began with.
    """
    found = parting(sides[0].trace, sides[1].trace)
    if found is not None and found.step == 0:
        traces = (side.trace for side in sides)
        return Report(parting=found, beginnings=beginnings(*traces))
    if found is None or not found.parts or not begun.inputs:
        return Report(parting=found)
    runs = [_Replay.of(side, begun, found.step, place, on_step) for side in sides]
    logs = [run.log() for run in runs]
    reproduced = {run.side.name: run.reproduces() for run in runs}
    return Report(
        parting=found, reproduced=reproduced, is_traced=True, finding=_finding(runs, logs)
    )


def _finding(runs: Sequence[_Replay], logs: Sequence[Sequence[Operation]]) -> Finding | None:
    """The first operation that differs, and how: a second run of both sides for its tensors."""
    first = first_operation(*logs)
    if first is None or first.output is None:
        return None if first is None else Finding(parting=first)
    origin, one = runs[0].operation(first.number)
    _, other = runs[1].operation(first.number)
    left, right = one[first.output], other[first.output]
    return Finding(
        parting=first,
        role=left.role,
        dtype=left.dtype,
        shape=left.shape,
        element=first_element(left, right),
        origin=origin,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replay:
    """Runs one side again up to a step."""

    side: Side
    begun: Begun
    step: int
    place: Path
    on_step: OnStep

    @classmethod
    def of(cls, side: Side, begun: Begun, step: int, place: Path, on_step: OnStep) -> Self:
        return cls(side=side, begun=begun, step=step, place=place / side.name, on_step=on_step)

    def log(self) -> tuple[Operation, ...]:
        """The operations of the step."""
        out = self._run("log")
        self._check_start(read_trace(out))
        return read_log((out / "ops.jsonl").read_bytes())

    def reproduces(self) -> bool:
        """Whether the run again gave the leaf of the step that this side recorded."""
        again = read_trace(self.place / "log" / "out")
        return again.lines[self.step - 1] == self.side.trace.lines[self.step - 1]

    def operation(self, number: int) -> tuple[Origin, list[Tensor]]:
        """Origin and tensors of one operation of the step."""
        out = self._run("operation", str(number))
        fields = Fields(strict_json.loads((out / "operation.json").read_bytes()))
        origin = fields.record("origin", Origin.from_value)
        tensors = fields.records("tensors", _described)
        return origin, [
            replace(one, data=(out / f"tensor-{index}").read_bytes())
            for index, one in enumerate(tensors)
        ]

    def _check_start(self, again: Trace) -> None:
        """Refuse inputs that are not those of the trace."""
        for name in ("frozen", "rows"):
            recorded, here = self.side.trace.start.get(name), again.start.get(name)
            if recorded != here:
                raise InvalidRecordError(
                    "not what the training began with",
                    file=str(self.begun.inputs["model" if name == "frozen" else "train"]),
                    where=f"{self.side.name}: start.{name}",
                    expected=str(recorded),
                    actual=str(here),
                )

    def _run(self, name: str, *numbers: str) -> Path:
        """Run a process of this side; the folder with what it wrote."""
        room = self.place / name
        out, scratch = room / "out", room / "scratch"
        for folder in (out, scratch):
            folder.mkdir(parents=True)
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as events, (room / "log").open("wb") as log:
            try:
                request = self._request(out, scratch, writing)
                (room / "request").write_bytes(request.encode())
                process = self._start(room, writing, log.fileno(), numbers)
            finally:
                os.close(writing)
            refusal = self._listen(events)
            status = process.wait()
        if status != EXIT_OK:
            raise self._failure(status, refusal, room / "log")
        return out

    def _request(self, out: Path, scratch: Path, events_fd: int) -> StepRequest:
        start, around = self.side.trace.start, self.side.surroundings
        numerics = Numerics.from_value(start.get("numerics"))
        portable = numerics.cls == PORTABLE
        if around.isa is not None and not portable:
            raise UsageError(
                "only a portable training has an instruction set of its own",
                file="kolm bisect",
                where=f"side {self.side.name}: isa={around.isa}",
                expected=PORTABLE,
                actual=numerics.cls,
                advice="Choose PyTorch's own by ATEN_CPU_CAPABILITY=NAME.",
            )
        circumstances = Circumstances(
            kernels=around.kernels, threads=around.threads, isa=around.isa
        )
        return StepRequest(
            step=self.begun.step,
            params=Fields(start).table("params"),  # type: ignore[arg-type]  # the step checks them
            inputs={role: str(folder.resolve()) for role, folder in self.begun.inputs.items()},
            outputs={"replay": str(out)},
            scratch=str(scratch),
            numerics=numerics,
            events_fd=events_fd,
            circumstances=circumstances if portable else None,
        )

    def _start(
        self, room: Path, events_fd: int, log: int, numbers: Sequence[str]
    ) -> subprocess.Popen[bytes]:
        around = self.side.surroundings
        package = str(Path(kolm_build.__file__).parent.parent)
        return subprocess.Popen(
            [around.python, "-P", "-B", "-m", MODULE, str(room / "request"), str(self.step),
             *numbers],
            pass_fds=[events_fd],
            cwd=room / "scratch",
            env={
                "HOME": str(room / "scratch"),
                "PATH": os.defpath,
                "PYTHONPATH": package,
                "OMP_WAIT_POLICY": "PASSIVE",
                **around.environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )  # fmt: skip

    def _listen(self, events: Iterator[bytes]) -> str:
        """Pass progress on until the process is done; why it refuses, where it does."""
        refusal = ""
        for line in events:
            event = json.loads(line)
            if event["event"] == "progress":
                self.on_step(self.side.name, event["done"], self.step)
            elif event["event"] == "error":
                refusal = f"{event['reason']} ({event.get('where', event['code'])})"
        return refusal

    def _failure(self, status: int, refusal: str, log: Path) -> StepFailedError:
        lines = log.read_text(errors="backslashreplace").strip().splitlines()
        return StepFailedError(
            "running the training again failed",
            where=f"side {self.side.name}",
            expected=f"step {self.step}",
            actual=refusal or (lines[-1] if lines else f"exit status {status}"),
        )


def _described(value: object) -> Tensor:
    fields = Fields(value)
    made = Tensor(
        role=fields.text("role"),
        dtype=fields.text("dtype"),
        shape=tuple(int(str(size)) for size in fields.array("shape")),
        data=b"",
    )
    fields.done()
    return made
