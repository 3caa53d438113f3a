"""How much a step may take: memory, disk, processes (spec/sandbox.md).

The kernel keeps each process to its limit. What all of a step's processes take together is looked
at from outside, and the step is ended when it is too much: that needs no privilege and no control
group, and works on every machine. Sums are looked at a few times a second, so a step may exceed
them by what it takes in one interval.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kolm_build.errors import BuildError, Exit, NoSpaceError, StepKilledError

RESERVE_BYTES = 64 << 20
"""Free space below which a step that writes is ended, whatever its own limit."""

_WITH_A_MODEL_BYTES = 1 << 30
"""Below this the libraries that compute with a model alone are too much, however small it is."""

_PROCESSES = 4096
_OPEN_FILES = 4096
_BLOCK_BYTES = 512
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class MemoryLimitError(StepKilledError):
    """A step used more memory than it may."""

    code = "build.memory-limit"


class DiskLimitError(BuildError):
    """A step wrote more than it may."""

    code = "build.disk-limit"
    exit = Exit.BUILD | Exit.MACHINE


class ProcessLimitError(StepKilledError):
    """A step started more processes and threads than it may."""

    code = "build.process-limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a step may take; nothing of it is in any hash.

    Attributes:
        memory_bytes: Memory of all its processes, and private writable memory of any one.
        written_bytes: What its outputs and its scratch hold, and the size of any one file; None
            for half of what is free when it starts.
        processes: Processes and threads.
        open_files: Open files of any one process.
    """

    memory_bytes: int
    written_bytes: int | None = None
    processes: int = _PROCESSES
    open_files: int = _OPEN_FILES

    @property
    def shared_bytes(self) -> int:
        """What ``/tmp`` and ``/dev/shm``, which are memory, hold at most, each."""
        return max(self.memory_bytes // 8, 1 << 20)

    def at(self, folder: Path) -> Allowance:
        """The limits of a step that writes below `folder`, whose free space is asked."""
        written = self.written_bytes
        return Allowance(
            memory_bytes=_within(self.memory_bytes, resource.RLIMIT_DATA),
            written_bytes=_within(
                _free_bytes(folder) // 2 if written is None else written, resource.RLIMIT_FSIZE
            ),
            processes=_within(self.processes, resource.RLIMIT_NPROC),
            open_files=_within(self.open_files, resource.RLIMIT_NOFILE),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """The limits of one step, within those of its user; the members are those of `Limits`."""

    memory_bytes: int
    written_bytes: int
    processes: int
    open_files: int

    def arguments(self) -> list[str]:
        """What `SET_LIMITS` takes."""
        blocks = max(self.written_bytes // _BLOCK_BYTES, 1)
        numbers = (self.open_files, blocks, self.memory_bytes // 1024, self.processes)
        return [str(number) for number in numbers]

    def to_value(self) -> dict[str, int]:
        """For a realisation's circumstances."""
        return {
            "memory_bytes": self.memory_bytes,
            "open_files": self.open_files,
            "processes": self.processes,
            "written_bytes": self.written_bytes,
        }


# What dash and busybox call -p, bash and ksh call -u. Where a limit cannot be set nothing runs.
SET_LIMITS = (
    'ulimit -c 0 && ulimit -n "$1" && ulimit -f "$2" && ulimit -d "$3"'
    ' && { ulimit -u "$4" 2>/dev/null || ulimit -p "$4"; }'
    " || { echo 'kolm: the limits of the step could not be set' >&2; exit 126; }; shift 4"
)
"""Shell that takes the first four arguments and keeps the shell and what it starts to them."""


def _within(wanted: int, kind: int) -> int:
    """`wanted`, or what this user may have at most."""
    _, hard = resource.getrlimit(kind)
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process takes.

    Attributes:
        parent: The process that started it.
        threads: How many threads it has.
        resident_bytes: Its resident memory, mapped files included.
    """

    parent: int
    threads: int
    resident_bytes: int


class Guard:
    """Looks at what a step takes.

    Args:
        allowance: What it may.
        folders: Where it writes; on one file system.
        step: Its name.
    """

    __slots__ = ("_allowance", "_folders", "_had_reserve", "_step")

    def __init__(self, allowance: Allowance, folders: tuple[Path, ...], *, step: str) -> None:
        self._allowance = allowance
        self._folders = folders
        self._step = step
        self._had_reserve = _free_bytes(folders[0]) > RESERVE_BYTES

    def look(self, pid: int) -> BuildError | NoSpaceError | None:
        """What the step that began as process `pid` exceeds, as the error that says so."""
        processes = descendants(pid, processes_here())
        return self._too_many(processes) or self._too_large(processes) or self._too_much(processes)

    def _too_many(self, processes: Mapping[int, Usage]) -> ProcessLimitError | None:
        count = sum(process.threads for process in processes.values())
        if count <= self._allowance.processes:
            return None
        return process_error(self._step, self._allowance.processes, str(count))

    def _too_large(self, processes: Mapping[int, Usage]) -> MemoryLimitError | None:
        limit = self._allowance.memory_bytes
        if sum(process.resident_bytes for process in processes.values()) <= limit:
            return None
        # Pages of mapped files are the kernel's to drop, and shared ones were counted twice.
        used = sum(_own_bytes(pid) for pid in processes)
        return None if used <= limit else memory_error(self._step, limit, f"used {amount(used)}")

    def _too_much(self, processes: Mapping[int, Usage]) -> DiskLimitError | NoSpaceError | None:
        limit = self._allowance.written_bytes
        written = sum(map(_tree_bytes, self._folders))
        written += _nameless_bytes(processes, self._folders[0].stat().st_dev)
        if written > limit:
            return disk_error(self._step, limit, f"wrote {amount(written)}")
        if self._had_reserve and _free_bytes(self._folders[0]) < RESERVE_BYTES:
            return NoSpaceError(
                f"the step {self._step} was killed: the disk is almost full",
                expected=f"at least {amount(RESERVE_BYTES)} free",
            )
        return None


def memory_error(step: str, limit_bytes: int, actual: str) -> MemoryLimitError:
    """The error of a step that met its memory limit."""
    return MemoryLimitError(
        f"the step {step} was killed: memory limit",
        expected=f"at most {amount(limit_bytes)}",
        actual=actual,
        advice="Raise `--step-memory`, or lower `batch_size` or `max_length`."
        if limit_bytes >= _WITH_A_MODEL_BYTES
        else "Raise `--step-memory`: a step takes 64M at least, one with a model 1G and more.",
    )


def process_error(step: str, limit: int, actual: str) -> ProcessLimitError:
    """The error of a step that met its limit of processes and threads."""
    return ProcessLimitError(
        f"the step {step} was killed: process limit",
        expected=f"at most {limit} processes and threads",
        actual=actual,
    )


def disk_error(step: str, limit_bytes: int, actual: str) -> DiskLimitError:
    """The error of a step that met its disk limit."""
    return DiskLimitError(
        f"the step {step} was ended: disk limit",
        expected=f"at most {amount(limit_bytes)} in its outputs and scratch",
        actual=actual,
        advice="Raise `--step-disk`, or free space where the store is.",
    )


def amount(size_bytes: int) -> str:
    """`size_bytes` for people."""
    if size_bytes < 1 << 30:
        return f"{size_bytes / (1 << 20):.0f} MiB"
    return f"{size_bytes / (1 << 30):.2f} GiB"


def processes_here() -> dict[int, Usage]:
    """Every process that this user sees."""
    found: dict[int, Usage] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208  # a thousand of them, often
        if name.isdigit():
            with suppress(OSError):  # it ended while we looked
                found[int(name)] = parse_stat(_read(f"/proc/{name}/stat"))
    return found


def parse_stat(text: bytes) -> Usage:
    """What a process's ``stat`` file says; its name, in brackets, may hold anything."""
    fields = text[text.rindex(b")") + 2 :].split()
    return Usage(int(fields[1]), int(fields[17]), int(fields[21]) * _PAGE_BYTES)


def descendants(pid: int, processes: Mapping[int, Usage]) -> dict[int, Usage]:
    """`pid` and everything that it started, and that these started."""
    children: dict[int, list[int]] = {}
    for child, process in processes.items():
        children.setdefault(process.parent, []).append(child)
    waiting = [pid]
    found: dict[int, Usage] = {}
    while waiting:
        one = waiting.pop()
        if one in processes:
            found[one] = processes[one]
        waiting += children.get(one, ())
    return found


def _own_bytes(pid: int) -> int:
    """Memory of a process that no file backs, shared pages counted once among all."""
    for path, fields in (
        (f"/proc/{pid}/smaps_rollup", (b"Pss_Anon:", b"Pss_Shmem:")),
        (f"/proc/{pid}/status", (b"RssAnon:", b"RssShmem:")),
    ):
        with suppress(OSError):
            lines = map(bytes.split, _read(path).splitlines())
            return 1024 * sum(int(line[1]) for line in lines if line and line[0] in fields)
    return 0


def _tree_bytes(folder: Path) -> int:
    """What the files below `folder` take on the disk."""
    return sum(found.st_blocks * _BLOCK_BYTES for found in _walk(str(folder)))


def _walk(folder: str) -> Iterator[os.stat_result]:
    waiting = [folder]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:  # it is being written
            for entry in entries:
                with suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    yield found
                    if stat.S_ISDIR(found.st_mode):
                        waiting.append(entry.path)


def _nameless_bytes(processes: Iterable[int], device: int) -> int:
    """What open files without a name take on the disk `device`."""
    sizes: dict[int, int] = {}
    for pid in processes:
        with suppress(OSError):  # it ended, or is not ours to look at
            for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208  # names alone
                with suppress(OSError):
                    found = os.stat(f"/proc/{pid}/fd/{name}")  # noqa: PTH116  # often
                    if found.st_nlink == 0 and found.st_dev == device:
                        sizes[found.st_ino] = found.st_blocks * _BLOCK_BYTES
    return sum(sizes.values())


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123  # often
        return file.read()
