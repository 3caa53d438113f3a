"""Builders: a derivation's step run as a process, its outputs taken into the store.

`SandboxBuilder` runs it closed in; `UnsafeOpenBuilder` runs the same protocol without isolation,
and its results say so. What goes wrong leaves as the error that the reader can act on.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Lock

from kolm_build.core.derivation import Derivation
from kolm_build.core.digest import Digest
from kolm_build.core.request import EXIT_OK, EXIT_REFUSED, Circumstances
from kolm_build.engine import sandbox
from kolm_build.engine.cpu import read_cpuinfo
from kolm_build.engine.events import Event, LogLine, Metric, OnEvent, Progress, Started
from kolm_build.engine.failure import crashed, over_limit, refused
from kolm_build.engine.joblog import LOG, note_failure
from kolm_build.engine.kernels import Kernels
from kolm_build.engine.limits import Allowance, Guard, Limits
from kolm_build.engine.probe import (
    NetworkAccess,
    default_memory_bytes,
    probe_interpreter,
    probe_machine,
    probe_memory_bytes,
    probe_network,
    probe_platform,
)
from kolm_build.engine.process import Ended, Launch, Log, Stop, StoppedError, run_process
from kolm_build.engine.protocol import BuildResult, StepShape, Store
from kolm_build.engine.room import Room
from kolm_build.engine.sandbox import Mounts, Sandbox, Surroundings
from kolm_build.engine.seccomp import step_filter
from kolm_build.errors import (
    InvalidRecordError,
    KolmError,
    MachineError,
    MachineMismatchError,
    NetworkError,
    NoSpaceError,
    PermissionDeniedError,
    StepFailedError,
    WrongContentError,
)

Environments = Callable[[Digest], Surroundings]
"""What an environment's digest stands for on this machine; raises MachineMismatchError."""

KeepFailed = Callable[[Derivation, Digest], None]
"""Called with a failed build's derivation and the tree of what it left."""

OPEN_LEVEL = "none"

_STOP_S = 30.0


class StepBuilder(ABC):
    """What every builder of step processes does.

    Args:
        store: Has the inputs, takes the outputs.
        steps: The steps there are.
        environments: Finds the distributions of a derivation's environment.
        kernels: How portable steps run; they do not where None.
        offline: Refuses every step with the network.
        unpinned_network: Lets a step with the network run before its outputs are known; for
            locking alone.
        keep_failed: Takes what a failed build left; it is thrown away where None.
        limits: What a step in the sandbox may take; nearly all memory and half of the free disk
            where None.
    """

    level: str

    def __init__(
        self,
        *,
        store: Store,
        steps: Mapping[str, StepShape],
        environments: Environments,
        kernels: Kernels | None = None,
        offline: bool = False,
        unpinned_network: bool = False,
        keep_failed: KeepFailed | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._store = store
        self._steps = steps
        self._environments = environments
        self._kernels = kernels or Kernels()
        self._offline = offline
        self._unpinned_network = unpinned_network
        self._keep_failed = keep_failed
        self._limits = limits or Limits(memory_bytes=default_memory_bytes())
        self._interpreter = probe_interpreter()
        self._stop = Stop()
        self._running = _Running()
        self._processors = _Processors()

    def stop(self) -> None:
        """End every step that runs and start no other, for good; none is left on return."""
        self._stop.set()
        self._running.wait_for_none()

    def build(self, derivation: Derivation, resolved: Derivation, on_event: OnEvent) -> BuildResult:
        """Run the step of `resolved` and keep its outputs.

        Args:
            derivation: As the lock has it; named in events.
            resolved: The same with every input by content.
            on_event: Told what the step says.

        Raises:
            KolmError: It could not be built; its log is kept.
        """
        _check_platform(resolved)
        network = self._network(resolved)
        seen = self._environments(resolved.environment) if resolved.environment else Surroundings()
        kernels = self._kernels.library_of(resolved)
        with self._running, _as_machine_error(), self._store.scratch() as folder:
            job = _Job(
                derivation=derivation,
                resolved=resolved,
                room=Room.below(folder),
                surroundings=seen,
                network=network,
                kernels=kernels,
                threads=self._kernels.threads_of(resolved),
                log=Log(),
                machine=probe_machine(),
            )
            job.room.furnish(
                resolved,
                self._store,
                seen_as=self._seen_as(job.room),
                circumstances=self._circumstances_of(job),
            )
            on_event(job.started)
            try:
                return self._run(job, on_event)
            except StoppedError:
                raise
            except KolmError as error:
                self._keep_failure(job, error)
                raise

    def _run(self, job: _Job, on_event: OnEvent) -> BuildResult:
        if self._stop.is_set():
            raise StoppedError("the build was stopped")
        with self._processors.taken(job.threads) as processors:
            allowance = self._allowance(job)
            ended = run_process(
                self._launch(job, processors, allowance),
                log=job.log,
                stop=self._stop,
                on_event=_translator(job.derivation.name, on_event),
            )
        _judge(ended, job, allowance)
        contents = self._take_outputs(job)
        return BuildResult(
            contents=contents,
            circumstances=self._circumstances(ended, job) | self._isolation(allowance),
            fetched=job.network is not None,
            wall_ms=ended.wall_ms,
        )

    def _network(self, resolved: Derivation) -> NetworkAccess | None:
        """The network of a step that has it; its outputs must then be known beforehand."""
        shape = self._steps.get(resolved.step)
        if shape is None:
            raise InvalidRecordError(
                f"unknown step {resolved.step!r}",
                where=resolved.name,
                expected=", ".join(sorted(self._steps)),
            )
        if not shape.network:
            return None
        if not (resolved.is_fixed or self._unpinned_network):
            raise InvalidRecordError(
                "a step with the network needs the digest of every output",
                where=resolved.name,
                advice="Run `kolm lock`, which pins what the step fetches.",
            )
        if self._offline:
            raise NetworkError(
                "a step needs the network, and `--offline` forbids it",
                where=resolved.name,
                actual=str(dict(resolved.params).get("source", "")) or None,
            )
        return probe_network()

    def _take_outputs(self, job: _Job) -> Mapping[str, Digest]:
        """The content of every output, in the store; those fixed by a digest compared with it."""
        job.room.check_outputs(job.resolved)
        contents = {name: self._ingest(job, name) for name, _ in job.resolved.outputs}
        for name, expected in job.resolved.outputs:
            if expected is not None and contents[name] != expected:
                raise WrongContentError(
                    "the content is not what the lock names",
                    where=f"{job.derivation.name}.{name}",
                    expected=str(expected),
                    actual=str(contents[name]),
                    advice="What came is kept in the store under its own digest. If the source"
                    " was meant to change, run `kolm lock --update`.",
                )
        return contents

    def _ingest(self, job: _Job, output: str) -> Digest:
        try:
            return self._store.ingest(job.room.out / output)
        except InvalidRecordError as error:
            raise StepFailedError(
                f"the step {job.resolved.step} wrote what no tree may hold",
                where=error.under(output).where,
                expected=error.expected,
                actual=error.actual or error.reason,
            ) from error

    def _circumstances_of(self, job: _Job) -> Circumstances | None:
        """What a portable step is told of how it runs here."""
        if job.kernels is None:
            return None
        return Circumstances(kernels=self._kernels_seen_as(job.kernels), threads=job.threads)

    def _circumstances(self, ended: Ended, job: _Job) -> dict[str, object]:
        return {
            "cpu_ms": ended.cpu_ms,
            LOG: str(self._store.put_log(job.log_bytes)),
            "machine": job.machine,
            "peak_bytes": ended.peak_bytes,
            "sandbox": self.level,
            "threads": job.threads,
            "wall_ms": ended.wall_ms,
        }

    def _keep_failure(self, job: _Job, error: KolmError) -> None:
        """Keep the log of a failed build, and what it left if that was asked for."""
        log = self._store.put_log(job.log_bytes)
        tree = None
        if self._keep_failed is not None:
            with suppress(KolmError):  # the failure itself is what the reader must see
                tree = self._store.ingest(job.room.out)
                self._keep_failed(job.derivation, tree)
        note_failure(self._store, job.resolved.resolved_digest, log=log, tree=tree)
        error.where = error.where or job.derivation.name
        error.advice = error.advice or f"`kolm log {job.derivation.name}` shows what it printed."

    @abstractmethod
    def _seen_as(self, room: Room) -> Room:
        """Where a step finds its folders."""

    @abstractmethod
    def _kernels_seen_as(self, library: Path) -> str:
        """Where a step finds the compiled kernels."""

    @abstractmethod
    def _allowance(self, job: _Job) -> Allowance | None:
        """What the step may take; None for no limits."""

    @abstractmethod
    def _isolation(self, allowance: Allowance | None) -> dict[str, object]:
        """What circumstances say of how the step was kept in."""

    @abstractmethod
    def _launch(
        self, job: _Job, processors: set[int] | None, allowance: Allowance | None
    ) -> Launch:
        """How to start the step."""


class SandboxBuilder(StepBuilder):
    """Runs steps in the bubblewrap sandbox, and not at all where there is none."""

    level = sandbox.LEVEL

    _sandbox: Sandbox | None = None

    def _seen_as(self, room: Room) -> Room:  # noqa: ARG002  # the same for every room
        return sandbox.INSIDE

    def _kernels_seen_as(self, library: Path) -> str:  # noqa: ARG002  # wherever it is
        return sandbox.KERNELS

    def _allowance(self, job: _Job) -> Allowance:
        return self._limits.at(job.room.build)

    def _isolation(self, allowance: Allowance | None) -> dict[str, object]:
        assert self._sandbox is not None
        assert allowance is not None
        return {
            "isolation": {
                "limits": allowance.to_value(),
                "program": self._sandbox.version,
                "syscall_filter": "seccomp",
                "visible": list(sandbox.VISIBLE),
            }
        }

    def _launch(
        self, job: _Job, processors: set[int] | None, allowance: Allowance | None
    ) -> Launch:
        assert allowance is not None
        if self._sandbox is None:
            self._sandbox = sandbox.find_sandbox()
        sandbox.prepare_room(job.room, cpuinfo=read_cpuinfo(), threads=job.threads)
        mounts = Mounts(
            room=job.room,
            interpreter=job.surroundings.interpreter or self._interpreter,
            environment=job.surroundings.binds,
            network=job.network,
            kernels=job.kernels,
            native=job.surroundings.native,
        )
        arguments = sandbox.sandbox_arguments(
            mounts,
            threads=job.threads,
            allowance=allowance,
            shared_bytes=self._limits.shared_bytes,
        )
        guard = Guard(allowance, (job.room.out, job.room.build), step=job.derivation.step)
        return Launch(
            command=(str(self._sandbox.bwrap), *arguments),
            variables={},
            processors=processors,
            syscall_filter=step_filter(machine=os.uname().machine, network=job.network is not None),
            look=guard.look,
        )


class UnsafeOpenBuilder(StepBuilder):
    """Runs steps without isolation: they see this machine and all its user may see.

    The same protocol and the same variables. Circumstances say ``sandbox: none``; such results
    are never signed or published.
    """

    level = OPEN_LEVEL

    def _seen_as(self, room: Room) -> Room:
        return room

    def _kernels_seen_as(self, library: Path) -> str:
        return str(library)

    def _allowance(self, job: _Job) -> None:  # noqa: ARG002  # limits are the sandbox's
        return None

    def _isolation(self, allowance: Allowance | None) -> dict[str, object]:  # noqa: ARG002
        return {}

    def _launch(
        self,
        job: _Job,
        processors: set[int] | None,
        allowance: Allowance | None,  # noqa: ARG002
    ) -> Launch:
        interpreter = job.surroundings.interpreter or self._interpreter
        python = str(interpreter.binary)
        script = 'umask 022; cd "$1"; shift; exec "$@"'
        return Launch(
            command=(
                "/bin/sh", "-c", script, "sh", str(job.room.build),
                *sandbox.step_command(python, job.room),
            ),
            variables=sandbox.step_variables(
                room=job.room,
                threads=job.threads,
                network=probe_network() if job.network is None else job.network,
                environment=[str(interpreter.site)] if job.surroundings.binds else [],
            )
            | _libraries(job.surroundings),
            processors=processors,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One build while it runs."""

    derivation: Derivation
    resolved: Derivation
    room: Room
    surroundings: Surroundings
    network: NetworkAccess | None
    kernels: Path | None
    threads: int
    log: Log
    machine: Mapping[str, object]

    @property
    def started(self) -> Started:
        return Started(
            node=self.derivation.name,
            step=self.derivation.step,
            derivation=self.derivation.digest,
        )

    @property
    def log_bytes(self) -> bytes:
        return self.log.bytes(sandbox.secret_values(self.network) if self.network else ())


class _Running:
    """Counts the builds that run."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._count += 1

    def __exit__(self, *_error: object) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def wait_for_none(self) -> None:
        """Return when none runs."""
        with self._changed:
            self._changed.wait_for(lambda: self._count == 0, _STOP_S)


class _Processors:
    """Hands each step the processors that fewest others were given."""

    def __init__(self) -> None:
        self._all = sorted(os.sched_getaffinity(0))
        self._load = Counter(dict.fromkeys(self._all, 0))
        self._lock = Lock()
        # Two kolm processes would otherwise both begin with the first processor.
        self._first = os.getpid() % len(self._all)

    @contextmanager
    def taken(self, count: int) -> Iterator[set[int] | None]:
        """`count` processors; None, for all of them, where there are fewer."""
        if count >= len(self._all):
            yield None
            return
        turned = self._all[self._first :] + self._all[: self._first]
        with self._lock:
            mine = sorted(turned, key=self._load.__getitem__)[:count]
            self._load.update(mine)
        try:
            yield set(mine)
        finally:
            with self._lock:
                self._load.subtract(mine)


def _libraries(surroundings: Surroundings) -> dict[str, str]:
    """What lets an interpreter from the store find its own shared library, unpacked elsewhere."""
    stored = surroundings.interpreter
    return {} if stored is None else {"LD_LIBRARY_PATH": f"{stored.prefix}/lib"}


def _check_platform(resolved: Derivation) -> None:
    """A derivation pinned to a kind of machine is built on that kind alone."""
    if resolved.platform is None:
        return
    here = probe_platform()
    if here != resolved.platform:
        raise MachineMismatchError(
            "this derivation gives its bytes on another kind of machine",
            where=resolved.name,
            expected=str(resolved.platform),
            actual=str(here),
            advice="Build it on such a machine, or lock it for this one.",
        )


def _judge(ended: Ended, job: _Job, allowance: Allowance | None) -> None:
    """Raise what a status other than 0 means, and a limit that was met."""
    step = job.derivation.step
    exceeded = over_limit(ended, job.log_bytes, step=step, allowance=allowance)
    if exceeded is not None:
        raise exceeded
    if ended.status == EXIT_REFUSED:
        raise refused(ended.error, step=step)
    if ended.status != EXIT_OK:
        raise crashed(ended, job.log_bytes, step=step, memory_bytes=probe_memory_bytes())


@contextmanager
def _as_machine_error() -> Iterator[None]:
    """The operating system's own refusals, as errors that say what to do."""
    try:
        yield
    except OSError as error:
        file = None if error.filename is None else str(error.filename)
        kind: type[MachineError] = MachineError
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            kind = NoSpaceError
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            kind = PermissionDeniedError
        raise kind("a build could not go on", file=file, actual=error.strerror) from error


def _translator(node: str, on_event: OnEvent) -> Callable[[Mapping[str, object]], None]:
    """What a step says, as events of `node`; what is not well formed is left out."""

    def translate(said: Mapping[str, object]) -> None:
        event = _event(node, said)
        if event is not None:
            on_event(event)

    return translate


def _event(node: str, said: Mapping[str, object]) -> Event | None:
    match said:
        case {"event": "progress", "done": int(done), "total": int(total), "unit": str(unit)}:
            loss = said.get("loss")
            return Progress(
                node=node,
                done=done,
                total=total,
                unit=unit,
                loss=loss if isinstance(loss, str) else None,
            )
        case {"event": "log", "text": str(text)}:
            return LogLine(node=node, text=text)
        case {"event": "metric", "name": str(name), "value": str(value)}:
            return Metric(node=node, name=name, value=value)
        case _:
            return None
