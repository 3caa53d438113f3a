"""The door of every step process: request in, events out, an exit status (spec/steps.md).

A step module is ``def main(argv): return run_step(argv, run)``. What goes wrong in a way that the
user can act on leaves as one ``error`` event and `EXIT_REFUSED`; anything else is a crash with a
traceback on stderr, which the engine keeps in the step's log.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from kolm_build.core.request import EXIT_OK, EXIT_REFUSED, StepRequest
from kolm_build.errors import (
    KolmError,
    MachineError,
    NoSpaceError,
    PermissionDeniedError,
    UsageError,
)

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class Events:
    """What a step tells its engine while it runs: JSON lines on a descriptor.

    Args:
        fd: The open descriptor; it stays the engine's.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def progress(self, done: int, total: int, *, unit: str, loss: str | None = None) -> None:
        """`done` of `total` units are finished; a `total` of 0 means that nobody knows."""
        event: dict[str, object] = {"event": "progress", "done": done, "total": total, "unit": unit}
        self._send(event if loss is None else event | {"loss": loss})

    def bytes_progress(self, done: int, total: int) -> None:
        """`done` of `total` bytes are read or written."""
        self.progress(done, total, unit="byte")

    def log(self, text: str) -> None:
        """A line for the step's log and for people who watch."""
        self._send({"event": "log", "text": text})

    def metric(self, name: str, value: str) -> None:
        """A figure, as decimal text."""
        self._send({"event": "metric", "name": name, "value": value})

    def error(self, error: KolmError) -> None:
        """Why the step refuses to go on."""
        self._send({"event": "error", **error.to_value()})

    def _send(self, event: dict[str, object]) -> None:
        left = memoryview(json.dumps(event, sort_keys=True).encode() + b"\n")
        while left:
            left = left[os.write(self._fd, left) :]


Run = Callable[[StepRequest, Events], None]
Within = Callable[[StepRequest], AbstractContextManager[None]]


def _nothing(_request: StepRequest) -> AbstractContextManager[None]:
    return nullcontext()


def run_step(argv: list[str], run: Run, *, within: Within = _nothing) -> int:
    """The exit status of the step `run` on the request file that `argv` names.

    Args:
        argv: The command line.
        run: The step.
        within: What it runs inside of: a step that computes applies its arithmetic there.

    Raises:
        KolmError: The request itself cannot be read; there is no descriptor to say so on.
    """
    if len(argv) != 2:
        raise UsageError("a step takes one argument", expected="step.py REQUEST-FILE")
    request = StepRequest.decode(Path(argv[1]).read_bytes())
    events = Events(request.events_fd)
    try:
        with within(request):
            run(request, events)
    except KolmError as error:
        events.error(error)
        return EXIT_REFUSED
    except (OSError, MemoryError) as error:
        machine = _machine_error(error)
        if machine is None:
            raise
        events.error(machine)
        return EXIT_REFUSED
    return EXIT_OK


def _machine_error(error: OSError | MemoryError) -> MachineError | None:
    """`error` as trouble of the machine; None where it is a mistake of the step."""
    if isinstance(error, MemoryError):
        return MachineError("the step ran out of memory", actual=str(error) or None)
    file = None if error.filename is None else str(error.filename)
    if error.errno in _DISK_FULL:
        return NoSpaceError("no space left while a step wrote", file=file, actual=error.strerror)
    if error.errno in _FORBIDDEN:
        return PermissionDeniedError("a step may not use a file", file=file, actual=error.strerror)
    return None
