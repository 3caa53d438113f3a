"""How a step process failed, as the error that its reader can act on."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Mapping

from kolm_build.core.request import EXIT_OK, EXIT_REFUSED
from kolm_build.engine.limits import (
    Allowance,
    amount,
    disk_error,
    memory_error,
    process_error,
)
from kolm_build.engine.process import Ended
from kolm_build.errors import KolmError, NoSandboxError, StepFailedError, StepKilledError

_PARTS = ("reason", "file", "where", "expected", "actual", "advice")
_KILLED = 128 + signal.SIGKILL
_TOO_LARGE = 128 + signal.SIGXFSZ
_NO_MEMORY = re.compile(
    r"^(object type name: )?MemoryError\b|^Fatal Python error.*MemoryError"
    r"|[Cc]an(not|'t) allocate memory|\bbad_alloc\b|Unable to allocate"
    r"|cannot map zero-fill pages|Memory allocation still failed"
)
_NO_PROCESS = re.compile(r"can't start new thread|\[Errno 11\]|pthread_create failed")
_LAST_WORDS_BYTES = 1 << 16
_NOT_STARTED = ("<no Python frame>", "lost sys.stderr")
_FILE_TOO_LARGE = re.compile(r"\[Errno 27\]|File too large")


def refused(event: Mapping[str, object] | None, *, step: str) -> KolmError:
    """The error of a step that ended with the status for "refused".

    Args:
        event: Its ``error`` event; None where it sent none.
        step: The step's name.
    """
    if event is None:
        return StepFailedError(f"the step {step} refused its input without saying why")
    parts = {name: str(event[name]) for name in _PARTS if name in event}
    reason = parts.pop("reason", "refused")
    code = event.get("code")
    for kind in _kinds(KolmError):
        if kind.code == code:
            return _made(kind, reason, parts)
    return _made(StepFailedError, reason, parts)


def _made(kind: type[KolmError], reason: str, parts: Mapping[str, str]) -> KolmError:
    return kind(
        reason,
        file=parts.get("file"),
        where=parts.get("where"),
        expected=parts.get("expected"),
        actual=parts.get("actual"),
        advice=parts.get("advice"),
    )


def _kinds(kind: type[KolmError]) -> Iterator[type[KolmError]]:
    """`kind` and its subclasses, nearest first."""
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


def over_limit(
    ended: Ended, log: bytes, *, step: str, allowance: Allowance | None
) -> KolmError | None:
    """The error of a step that met a limit: one it was ended for, or one the kernel kept it to.

    Of the latter nothing tells but the step's own last words.

    Args:
        ended: How it ended.
        log: What it printed.
        step: Its name.
        allowance: Its limits; None where it has none.
    """
    if ended.exceeded is not None:
        return ended.exceeded
    if allowance is None or ended.status in (EXIT_OK, EXIT_REFUSED):
        return None
    if ended.status == _TOO_LARGE:
        return disk_error(step, allowance.written_bytes, "one file was larger")
    for said in _last_words(log, ended.status):
        if _NO_MEMORY.search(said):
            return memory_error(step, allowance.memory_bytes, said)
        if _NO_PROCESS.search(said):
            return process_error(step, allowance.processes, said)
        if _FILE_TOO_LARGE.search(said):
            return disk_error(step, allowance.written_bytes, f"one file was larger: {said}")
    return None


def _last_words(log: bytes, status: int) -> Iterator[str]:
    """The last line; where a dump of frames follows the cause, what comes before it, too.

    That is so where a signal ended the step, and where Python could not start.
    """
    last = last_line(log) or ""
    yield last
    if status > 128 or last in _NOT_STARTED:
        for line in reversed(log[-_LAST_WORDS_BYTES:].decode(errors="replace").splitlines()):
            if line and not line[0].isspace():
                yield line[:500]


def crashed(ended: Ended, log: bytes, *, step: str, memory_bytes: int) -> KolmError:
    """The error of a step that ended with any other status.

    Args:
        ended: How it ended.
        log: What it printed.
        step: Its name.
        memory_bytes: Memory of this machine.
    """
    status = 128 - ended.status if ended.status < 0 else ended.status
    if status == _KILLED:
        return StepKilledError(
            f"the step {step} was killed by SIGKILL, most likely because memory ran out",
            actual=f"its largest process used {amount(ended.peak_bytes)} of the machine's"
            f" {amount(memory_bytes)}",
            advice="Lower `batch_size` or `max_length`, run fewer `--jobs`, or free memory.",
        )
    if log.startswith(b"bwrap: "):
        return NoSandboxError(
            "the sandbox of a step could not be made", actual=last_line(log), where=step
        )
    if status > 128 and status - 128 in {int(number) for number in signal.Signals}:
        how = f"crashed with {signal.Signals(status - 128).name}"
    else:
        how = f"ended with status {status}"
    return StepFailedError(f"the step {step} {how}", actual=last_line(log))


def last_line(log: bytes) -> str | None:
    """The last line of a log that says anything; of a traceback, the exception."""
    lines = log.decode(errors="replace").splitlines()
    return next((line.strip()[:500] for line in reversed(lines) if line.strip()), None)
