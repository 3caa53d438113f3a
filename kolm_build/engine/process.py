"""One step process: started, listened to, ended (spec/step-protocol.md).

Everything it says passes through here with bounded memory: events line by line, its standard
output and error into a log of which the middle is left out when it is long. The process is ended
when the build stops, and nothing of it is left running.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import selectors
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fcntl import F_DUPFD_CLOEXEC, fcntl
from time import monotonic_ns

from kolm_build.errors import BuildError, MachineError

EVENTS_FD = 3
"""The descriptor a step finds for its events."""

MAX_LINE_BYTES = 1 << 20
LOG_HEAD_BYTES = 4 << 20
LOG_TAIL_BYTES = 1 << 20

_CHUNK_BYTES = 1 << 16
_GRACE_S = 2.0
_ADDR_NO_RANDOMIZE = 0x0040000
_ASK_PERSONALITY = 0xFFFFFFFF


class Stop:
    """A request to stop that a thread can wait on together with its pipes."""

    __slots__ = ("_fd", "_set")

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._set = False

    def set(self) -> None:
        """Ask everybody to stop, for good."""
        self._set = True
        os.eventfd_write(self._fd, 1)

    def is_set(self) -> bool:
        """Whether somebody asked."""
        return self._set

    def fileno(self) -> int:
        """Readable once somebody asked."""
        return self._fd

    def __del__(self) -> None:
        os.close(self._fd)


class StoppedError(BuildError):
    """The build was stopped from outside while this step ran."""

    code = "build.stopped"


@dataclass(slots=True)
class Log:
    """What a step printed: the first and the last of it, however much it was."""

    head: bytearray = field(default_factory=bytearray)
    tail: deque[bytes] = field(default_factory=deque)
    tail_bytes: int = 0
    left_out_bytes: int = 0

    def write(self, data: bytes) -> None:
        """Append `data`."""
        room = LOG_HEAD_BYTES - len(self.head)
        self.head += data[:room]
        if rest := data[room:] if room < len(data) else b"":
            self.tail.append(rest)
            self.tail_bytes += len(rest)
        while self.tail_bytes - len(self.tail[0] if self.tail else b"") > LOG_TAIL_BYTES:
            dropped = len(self.tail.popleft())
            self.tail_bytes -= dropped
            self.left_out_bytes += dropped

    def bytes(self, secrets: Sequence[str] = ()) -> bytes:
        """The log, with a line where something was left out and stars for every secret."""
        gap = b""
        if self.left_out_bytes:
            gap = f"\n[kolm: {self.left_out_bytes} bytes left out]\n".encode()
        whole = bytes(self.head) + gap + b"".join(self.tail)
        for secret in secrets:
            whole = whole.replace(secret.encode(), b"***")
        return whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to start a process.

    Attributes:
        command: Program and arguments.
        variables: Its whole environment.
        processors: The processors it is kept to; None for all.
    """

    command: tuple[str, ...]
    variables: Mapping[str, str]
    processors: set[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a process ended.

    Attributes:
        status: Its exit status; a signal's number is negative.
        error: The ``error`` event, if it sent one.
        wall_ms: How long it ran.
        cpu_ms: Processor time of it and its children.
        peak_bytes: Largest resident memory of any one of its processes.
    """

    status: int
    error: Mapping[str, object] | None
    wall_ms: int
    cpu_ms: int
    peak_bytes: int


def run_process(
    launch: Launch, *, log: Log, stop: Stop, on_event: Callable[[Mapping[str, object]], None]
) -> Ended:
    """Run a step process to its end.

    Args:
        launch: What to start.
        log: Takes what it prints.
        stop: Ends it early.
        on_event: Called with every event but ``error``.

    Raises:
        MachineError: It could not be started.
        StoppedError: `stop` was set; the process is gone.
    """
    started_ns = monotonic_ns()
    output, output_in = _pipe()
    events, events_in = _pipe()
    try:
        pid = _start(launch, output=output_in, events=events_in)
    except BaseException:
        _close(output, events)
        raise
    finally:
        _close(output_in, events_in)
    pump = _Pump(output=output, events=events, log=log, on_event=on_event)
    try:
        usage, status = _attend(pid, pump, stop)
    finally:
        _close(output, events)
    return Ended(
        status=os.waitstatus_to_exitcode(status),
        error=pump.error,
        wall_ms=(monotonic_ns() - started_ns) // 1_000_000,
        cpu_ms=int((usage.ru_utime + usage.ru_stime) * 1000),
        peak_bytes=usage.ru_maxrss * 1024,
    )


def _pipe() -> tuple[int, int]:
    """A pipe whose writing end is above the descriptors that a step finds."""
    reading, low = os.pipe2(os.O_CLOEXEC)
    writing = fcntl(low, F_DUPFD_CLOEXEC, 10)
    os.close(low)
    return reading, writing


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _start(launch: Launch, *, output: int, events: int) -> int:
    """Start the process in a process group of its own."""
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, output, 2),
        (os.POSIX_SPAWN_DUP2, events, EVENTS_FD),
    ]
    with _fixed_addresses(), _kept_to(launch.processors):
        try:
            return os.posix_spawn(
                launch.command[0],
                launch.command,
                launch.variables,
                file_actions=actions,
                setpgroup=0,
                setsigmask=(),
                setsigdef=(signal.SIGINT, signal.SIGPIPE, signal.SIGTERM),
            )
        except OSError as error:
            raise MachineError(
                "a step could not be started", file=launch.command[0], actual=error.strerror
            ) from error


@contextmanager
def _fixed_addresses() -> Iterator[None]:
    """Processes started by this thread have no address space randomisation.

    `id` and the order of a set of objects would otherwise differ from run to run. The personality
    belongs to the thread and is inherited.
    """
    libc = ctypes.CDLL(None)
    before = libc.personality(_ASK_PERSONALITY)
    if before >= 0:
        libc.personality(before | _ADDR_NO_RANDOMIZE)
    try:
        yield
    finally:
        if before >= 0:
            libc.personality(before)


@contextmanager
def _kept_to(processors: set[int] | None) -> Iterator[None]:
    """Processes started by this thread run on `processors` only."""
    if processors is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _attend(pid: int, pump: _Pump, stop: Stop) -> tuple[resource.struct_rusage, int]:
    """Listen until the process ends; whatever happens, nothing of it is left afterwards."""
    watch = os.pidfd_open(pid)
    try:
        pump.listen(until=watch, stop=stop)
        if stop.is_set():
            _signal(pid, signal.SIGTERM)
            pump.listen(until=watch, timeout_s=_GRACE_S)
    finally:
        _signal(pid, signal.SIGKILL)
        os.close(watch)
        _, status, usage = os.wait4(pid, 0)
    pump.drain(timeout_s=_GRACE_S)
    if stop.is_set():
        raise StoppedError("the build was stopped")
    return usage, status


def _signal(pid: int, number: signal.Signals) -> None:
    """Send `number` to the process's group; nothing where all of it is gone."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


class _Pump:
    """Moves what a process says to the log and the caller, holding little of it."""

    __slots__ = ("_buffer", "_events", "_log", "_on_event", "_open", "error")

    def __init__(
        self,
        *,
        output: int,
        events: int,
        log: Log,
        on_event: Callable[[Mapping[str, object]], None],
    ) -> None:
        self._events = events
        self._open = {output, events}
        self._buffer = b""
        self._log = log
        self._on_event = on_event
        self.error: Mapping[str, object] | None = None

    def listen(
        self, *, until: int, stop: Stop | None = None, timeout_s: float | None = None
    ) -> None:
        """Move data until the descriptor `until` is readable, `stop` is set, or time is up."""
        with selectors.DefaultSelector() as selector:
            for descriptor in (*self._open, until, *([stop.fileno()] if stop else [])):
                selector.register(descriptor, selectors.EVENT_READ)
            while ready := selector.select(timeout_s):
                found = [key.fd for key, _ in ready]
                for descriptor in self._open.intersection(found):
                    if not self._move(descriptor):
                        selector.unregister(descriptor)
                if until in found or (stop is not None and stop.fileno() in found):
                    return

    def drain(self, *, timeout_s: float) -> None:
        """Move what is left in the pipes after the process ended."""
        with selectors.DefaultSelector() as selector:
            for descriptor in self._open:
                selector.register(descriptor, selectors.EVENT_READ)
            while self._open and (ready := selector.select(timeout_s)):
                for key, _ in ready:
                    if not self._move(key.fd):
                        selector.unregister(key.fd)

    def _move(self, descriptor: int) -> bool:
        """Read once; whether there may be more."""
        data = os.read(descriptor, _CHUNK_BYTES)
        if not data:
            self._open.discard(descriptor)
        elif descriptor == self._events:
            self._take_events(data)
        else:
            self._log.write(data)
        return bool(data)

    def _take_events(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._take_event(line)
        if len(self._buffer) > MAX_LINE_BYTES:
            self._log.write(b"[kolm: an event that is too long was dropped]\n")
            self._buffer = b""

    def _take_event(self, line: bytes) -> None:
        event = _parse_event(line)
        if event is None:
            self._log.write(b"[kolm: not an event: " + line[:200] + b"]\n")
        elif event["event"] == "error":
            self.error = event
        else:
            if event["event"] == "log":
                self._log.write(str(event.get("text", "")).encode(errors="replace") + b"\n")
            self._on_event(event)


def _parse_event(line: bytes) -> Mapping[str, object] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None
