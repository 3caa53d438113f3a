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

from kolm_build.engine.limits import processes_here
from kolm_build.errors import BuildError, KolmError, MachineError

EVENTS_FD = 3
"""The descriptor a step finds for its events."""

FILTER_FD = 4
"""The descriptor on which bwrap finds the filter of system calls, and which it closes."""

Look = Callable[[int], KolmError | None]
"""Given the first process of a step: the error of the limit that it exceeds, if one is."""

MAX_LINE_BYTES = 1 << 20
LOG_HEAD_BYTES = 4 << 20
LOG_TAIL_BYTES = 1 << 20

_CHUNK_BYTES = 1 << 16
_GRACE_S = 2.0
# Looks take at most a fiftieth of a processor, unless they are too far apart then.
_LOOK_EVERY_S = (0.1, 0.5)
_LOOK_SHARE = 50
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
        syscall_filter: Found on `FILTER_FD`; None for none.
        look: Asked a few times a second; the process is ended when it answers.
    """

    command: tuple[str, ...]
    variables: Mapping[str, str]
    processors: set[int] | None = None
    syscall_filter: bytes | None = None
    look: Look | None = None

    @property
    def is_contained(self) -> bool:
        """Whether it is bwrap, with all that it starts in a PID namespace."""
        return self.syscall_filter is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a process ended.

    Attributes:
        status: Its exit status; a signal's number is negative.
        error: The ``error`` event, if it sent one.
        exceeded: The limit for which it was ended, if it was.
        wall_ms: How long it ran.
        cpu_ms: Processor time of it and its children.
        peak_bytes: Largest resident memory of any one of its processes.
    """

    status: int
    error: Mapping[str, object] | None
    exceeded: KolmError | None
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
        usage, status, exceeded = _attend(pid, pump, stop, launch)
    finally:
        _close(output, events)
    return Ended(
        status=os.waitstatus_to_exitcode(status),
        error=pump.error,
        exceeded=exceeded,
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
    """Start the process in a process group of its own, with no descriptor but those it is given."""
    given = _memory_file(launch.syscall_filter)
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, output, 2),
        (os.POSIX_SPAWN_DUP2, events, EVENTS_FD),
        *((os.POSIX_SPAWN_DUP2, descriptor, FILTER_FD) for descriptor in given),
    ]
    _keep_descriptors()
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
        finally:
            _close(*given)


def _memory_file(data: bytes | None) -> list[int]:
    """A descriptor, above those that a step finds, that reads `data`; none for None."""
    if data is None:
        return []
    low = os.memfd_create("kolm-filter")
    os.write(low, data)
    os.lseek(low, 0, os.SEEK_SET)
    high = fcntl(low, F_DUPFD_CLOEXEC, 10)
    os.close(low)
    return [high]


def _keep_descriptors() -> None:
    """Let no started process have the descriptors that whoever started kolm left open.

    Those that Python opens are kept anyway.
    """
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  # names alone
        if int(name) > 2:
            with suppress(OSError):  # the one that listed them
                os.set_inheritable(int(name), False)  # noqa: FBT003  # positional only


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


def _attend(
    pid: int, pump: _Pump, stop: Stop, launch: Launch
) -> tuple[resource.struct_rusage, int, KolmError | None]:
    """Listen until the process ends; whatever happens, nothing of it is left afterwards."""
    watch = os.pidfd_open(pid)
    exceeded = None
    try:
        exceeded = _listen(pid, watch, pump, stop, launch.look)
        if stop.is_set() and not launch.is_contained:
            _signal(pid, signal.SIGTERM)
            pump.listen(until=watch, timeout_s=_GRACE_S)
    finally:
        if launch.is_contained:
            _end_inside(pid, watch)
        _signal(pid, signal.SIGKILL)
        os.close(watch)
        _, status, usage = os.wait4(pid, 0)
    pump.drain(timeout_s=_GRACE_S)
    if stop.is_set():
        raise StoppedError("the build was stopped")
    return usage, status, exceeded


def _listen(pid: int, watch: int, pump: _Pump, stop: Stop, look: Look | None) -> KolmError | None:
    """Listen until the process ends, the build stops, or `look` says what is exceeded."""
    if look is None:
        pump.listen(until=watch, stop=stop)
        return None
    wait_s, longest_s = _LOOK_EVERY_S
    while not pump.listen(until=watch, stop=stop, timeout_s=wait_s):
        started_ns = monotonic_ns()
        if (exceeded := look(pid)) is not None:
            return exceeded
        took_s = (monotonic_ns() - started_ns) / 1e9
        wait_s = min(max(took_s * _LOOK_SHARE, wait_s), longest_s)
    return None


def _end_inside(pid: int, watch: int) -> None:
    """End the sandbox that bwrap, process `pid`, waits for; nothing where it has ended.

    Its first process is that of a PID namespace: when bwrap has seen its end, the kernel has
    ended everything in there. Were bwrap killed first, nobody would wait for that.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(watch, selectors.EVENT_READ)
        if selector.select(0):
            return
        children = _children(pid)
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        selector.select(_GRACE_S if children else 0)


def _children(pid: int) -> list[int]:
    return [child for child, process in processes_here().items() if process.parent == pid]


def _left_s(end_ns: int | None) -> float | None:
    return None if end_ns is None else max(end_ns - monotonic_ns(), 0) / 1e9


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
    ) -> bool:
        """Move data until the descriptor `until` is readable, `stop` is set, or time is up.

        Returns:
            Whether it was not the time.
        """
        end_ns = None if timeout_s is None else monotonic_ns() + int(timeout_s * 1e9)
        with selectors.DefaultSelector() as selector:
            for descriptor in (*self._open, until, *([stop.fileno()] if stop else [])):
                selector.register(descriptor, selectors.EVENT_READ)
            while ready := selector.select(_left_s(end_ns)):
                found = [key.fd for key, _ in ready]
                for descriptor in self._open.intersection(found):
                    if not self._move(descriptor):
                        selector.unregister(descriptor)
                if until in found or (stop is not None and stop.fileno() in found):
                    return True
                if end_ns is not None and monotonic_ns() >= end_ns:
                    break
        return False

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
