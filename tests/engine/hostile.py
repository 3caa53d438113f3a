"""Hostile steps, one row each: what they try and what must stop them.

The tests run every row, and `tools/sandbox_table.py` prints what each met.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from kolm_build.engine import seccomp
from kolm_build.engine.builder import StepBuilder
from kolm_build.engine.limits import Limits
from kolm_build.errors import KolmError
from tests.engine.steps import code, derivation, folder

DONE = "DONE"
"""What an act answers that nothing stopped."""

MARK = "kolm-hostile-left-behind"
SECRET = "a secret of the machine"

SMALL = Limits(memory_bytes=256 << 20, written_bytes=32 << 20, processes=64)

_HELPERS = """
import ctypes, errno, fcntl, mmap, resource, signal, socket, subprocess, termios, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def name(number):
    return errno.errorcode.get(number, str(number))

def call(number, *arguments):
    arguments = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    if libc.syscall(ctypes.c_long(number), *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")

def answers(*acts):
    # What stopped each, or DONE for the whole if nothing stopped one.
    met = []
    for act in acts:
        try:
            act()
        except OSError as error:
            met.append(name(error.errno))
        else:
            return "DONE"
    return ", ".join(sorted(set(met)))

def opened(path, mode="w"):
    return lambda: open(path, mode).close()
"""


@dataclass(frozen=True, kw_only=True)
class Act:
    """A hostile act.

    Attributes:
        name: What it is.
        body: The step; it puts its answer into ``found``.
        met: Answers that mean it was stopped: an errno, the code of an error, or its own word.
        by: What is meant to stop it.
        limits: What the step may take; plenty where None.
        machine: Where it can be tried; None for everywhere.
    """

    name: str
    body: str
    met: tuple[str, ...]
    by: str
    limits: Limits | None = None
    machine: str | None = None


def _calls(*names: str) -> str:
    """A step that makes system calls by number, with harmless arguments."""
    known = {call.name: call for call in (*seccomp.NEEDS_PRIVILEGE, *seccomp.IS_PROBED_FOR)}
    machine = os.uname().machine
    numbers = [getattr(known[name], machine) for name in names]
    tries = ", ".join(f"lambda: call({number}, 0, 0, 0, 0, 0)" for number in numbers)
    return f"found = answers({tries})"


def _clone(flags: int) -> str:
    number = getattr(seccomp.CLONE, os.uname().machine)
    return f"""
    def act():
        pid = libc.syscall(ctypes.c_long({number}), ctypes.c_long({flags | 17}), 0, 0, 0, 0)
        if pid == 0:
            os._exit(0)
        if pid < 0:
            raise OSError(ctypes.get_errno(), "refused")
    found = answers(act)
    """


ACTS = (
    Act(
        name="read a file outside its closure",
        body="found = answers(opened(params['secret'], 'r'))",
        met=("ENOENT",),
        by="mount namespace",
    ),
    Act(
        name="read through a descriptor that kolm was started with",
        body="""
        def act():
            for number in range(4, 64):
                try:
                    if os.read(number, 1):
                        return
                except OSError as error:
                    last = error
            raise last
        found = answers(act)
        """,
        met=("EBADF",),
        by="descriptors closed on start",
    ),
    Act(
        name="write below /, /etc, /usr, /dev and /proc/sys",
        body="""
        paths = ["/new", "/etc/new", "/usr/new", "/dev/new", "/kolm/new"]
        paths += [path for path in (
            "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname",
            "/proc/sys/vm/overcommit_memory", "/proc/sysrq-trigger",
        ) if os.path.exists(path)]
        found = answers(*map(opened, paths))
        """,
        met=("EROFS",),
        by="read-only mounts",
    ),
    Act(
        name="read the machine's memory, keys and kernel messages in /proc",
        body="""
        names = ("kcore", "kmsg", "keys", "kallsyms", "kpageflags", "slabinfo", "vmallocinfo")
        def act(name):
            with open("/proc/" + name, "rb") as file:
                if not file.read(1):
                    raise OSError(errno.ENODATA, "empty")
        there = [name for name in names if os.path.exists("/proc/" + name)]
        found = answers(*(lambda name=name: act(name) for name in there))
        """,
        met=("ENODATA",),
        by="empty files over them",
    ),
    Act(
        name="write to a folder of the machine",
        body="found = answers(opened(params['outside'] + '/new'))",
        met=("ENOENT",),
        by="mount namespace",
    ),
    Act(
        name="change an input",
        body="""
        path = inputs["data"] + "/text"
        found = answers(opened(path), opened(path, "a"), lambda: os.chmod(path, 0o777),
                        lambda: os.unlink(path), lambda: os.rename(path, path + "2"))
        """,
        met=("EACCES, EROFS", "EROFS"),
        by="read-only mount",
    ),
    Act(
        name="mount something over an input",
        body=_calls("mount", "umount2", "move_mount", "fsopen", "open_tree", "mount_setattr"),
        met=("EPERM",),
        by="filter, no capabilities",
    ),
    Act(
        name="change its root folder",
        body=_calls("chroot", "pivot_root"),
        met=("EPERM",),
        by="filter, no capabilities",
    ),
    Act(
        name="open a socket of every family but AF_UNIX",
        body="""
        def open_one(family, kind):
            return lambda: socket.socket(family, kind).close()
        found = answers(*(open_one(family, kind) for family in range(50) if family != 1
                          for kind in (1, 2, 3, 5)))
        """,
        met=("EAFNOSUPPORT",),
        by="filter",
    ),
    Act(
        name="reach a server of the machine",
        body="""
        def act():
            socket.create_connection(("127.0.0.1", params["port"]), timeout=5)
        found = answers(act)
        """,
        met=("EAFNOSUPPORT",),
        by="filter, network namespace",
    ),
    Act(
        name="reach an abstract AF_UNIX socket of the machine",
        body="""
        def act():
            socket.socket(socket.AF_UNIX).connect("\\0" + params["abstract"])
        found = answers(act)
        """,
        met=("ECONNREFUSED",),
        by="network namespace",
    ),
    Act(
        name="see other processes",
        body="""
        seen = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        found = "sees its own alone" if set(seen) <= {1, os.getpid()} else "DONE"
        """,
        met=("sees its own alone",),
        by="PID namespace",
    ),
    Act(
        name="signal a process of the machine",
        body="found = answers(lambda: os.kill(params['pid'], 0))",
        met=("ESRCH",),
        by="PID namespace",
    ),
    Act(
        name="trace a process or read its memory",
        body=_calls(
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "process_madvise",
            "pidfd_getfd",
            "kcmp",
        ),
        met=("EPERM",),
        by="filter",
    ),
    Act(
        name="make a new user namespace (unshare, clone)",
        body=_calls("unshare", "setns")
        + dedent(_clone(0x10000000)).replace("found = answers(act)", "found += ' ' + answers(act)"),
        met=("EPERM EPERM",),
        by="filter",
    ),
    Act(
        name="make a new namespace past the filter's sight (clone3)",
        body=_calls("clone3"),
        met=("ENOSYS",),
        by="filter",
    ),
    Act(
        name="use io_uring past the filter",
        body=_calls("io_uring_setup", "io_uring_enter", "io_uring_register"),
        met=("ENOSYS",),
        by="filter",
    ),
    Act(
        name="keep something in the user's key ring",
        body=_calls("keyctl", "add_key", "request_key"),
        met=("ENOSYS",),
        by="filter",
    ),
    Act(
        name="load a BPF program, count events, fault in user space",
        body=_calls("bpf", "perf_event_open") + "\nfound += ', ' + " + _calls("userfaultfd")[8:],
        met=("EPERM, ENOSYS",),
        by="filter",
    ),
    Act(
        name="load a module, another kernel, reboot, swap",
        body=_calls(
            "init_module",
            "finit_module",
            "delete_module",
            "kexec_load",
            "kexec_file_load",
            "reboot",
            "swapon",
            "swapoff",
            "acct",
            "syslog",
        ),
        met=("EPERM",),
        by="filter, no capabilities",
    ),
    Act(
        name="set the clock",
        body=_calls("settimeofday", "clock_settime", "clock_adjtime", "adjtimex"),
        met=("EPERM",),
        by="filter, no capabilities",
    ),
    Act(
        name="type into a terminal (TIOCSTI, TIOCLINUX)",
        body="""
        _, terminal = os.openpty()
        found = answers(lambda: fcntl.ioctl(terminal, termios.TIOCSTI, b"x"),
                        lambda: fcntl.ioctl(terminal, 0x541C, b"x"))
        """,
        met=("EPERM",),
        by="filter, session of its own",
    ),
    Act(
        name="make calls of the x32 ABI, and ones newer than the filter",
        body="""
        numbers = (0x40000027, 463, 468, 999)
        found = answers(*(lambda number=number: call(number, 0, 0, 0) for number in numbers))
        """,
        met=("ENOSYS",),
        by="filter",
    ),
    Act(
        name="make calls of the i386 ABI",
        body=r"""
        # mov eax, 20 (getpid); int 0x80; ret
        page = mmap.mmap(-1, 4096, prot=7)
        page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        child = os.fork()
        if child == 0:
            result = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
            os._exit(-result if result < 0 else 0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = "DONE" if status == 0 else name(status)
        """,
        met=("ENOSYS", "-11"),
        by="filter",
        machine="x86_64",
    ),
    Act(
        name="become another user, make a device",
        body="""
        found = answers(lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([]),
                        lambda: os.mknod("/build/mem", 0o20666, os.makedev(1, 1)))
        """,
        met=("EINVAL, EPERM", "EPERM"),
        by="user namespace, no capabilities",
    ),
    Act(
        name="raise its limits",
        body="""
        def raised(kind):
            def act():
                try:
                    resource.setrlimit(kind, (resource.RLIM_INFINITY,) * 2)
                except ValueError:
                    raise OSError(errno.EPERM, "refused") from None
            return act
        kinds = (resource.RLIMIT_CORE, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE,
                 resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)
        found = answers(*map(raised, kinds))
        """,
        met=("EPERM",),
        by="hard limits, no capabilities",
    ),
    Act(
        name="dump core",
        body="""
        child = os.fork()
        if child == 0:
            os.chdir("/build")
            os.abort()
        _, status = os.waitpid(child, 0)
        found = "DONE" if os.WCOREDUMP(status) or os.listdir("/build") else "no core"
        """,
        met=("no core",),
        by="limit of 0 bytes",
    ),
    Act(
        name="leave a process behind",
        body=f"""
        code = "import time; time.sleep(600)  # {MARK}"
        subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        found = "left one"
        """,
        met=("left one, gone",),
        by="PID namespace",
    ),
    Act(
        name="fork bomb",
        body="""
        first = os.getpid()
        try:
            for _ in range(1000):
                os.fork()
            time.sleep(60)
            found = "DONE"
        except OSError as error:
            if os.getpid() != first:
                time.sleep(60)
            found = name(error.errno)
        """,
        met=("build.process-limit", "EAGAIN"),
        by="process limit (kernel's, but for root; kolm's)",
        limits=SMALL,
    ),
    Act(
        name="use up memory in one process",
        body="""
        blocks = []
        for _ in range(512):
            blocks.append(bytearray(1 << 20))
        found = "DONE"
        """,
        met=("build.memory-limit",),
        by="data size limit",
        limits=SMALL,
    ),
    Act(
        name="use up memory in many processes",
        body="""
        for _ in range(8):
            if os.fork() == 0:
                block = bytearray(os.urandom(1 << 20)) * 60
                time.sleep(60)
        time.sleep(60)
        found = "DONE"
        """,
        met=("build.memory-limit",),
        by="kolm, which looks",
        limits=SMALL,
    ),
    Act(
        name="keep memory that belongs to no process",
        body=_calls("memfd_create", "memfd_secret", "shmget"),
        met=("ENOSYS",),
        by="filter",
    ),
    Act(
        name="fill /tmp and /dev/shm, which are memory",
        body="""
        def filled(path):
            def act():
                with open(path + "/big", "wb") as file:
                    for _ in range(128):
                        file.write(bytes(1 << 20))
            return act
        found = answers(filled("/tmp"), filled("/dev/shm"))
        """,
        met=("EFBIG, ENOSPC", "ENOSPC"),
        by="size of the mount",
        limits=Limits(memory_bytes=256 << 20, written_bytes=1 << 30),
    ),
    Act(
        name="fill the disk with one file",
        body="""
        with open("/build/big", "wb") as file:
            for _ in range(128):
                file.write(bytes(1 << 20))
        found = "DONE"
        """,
        met=("build.disk-limit",),
        by="file size limit",
        limits=SMALL,
    ),
    Act(
        name="fill the disk with many files",
        body="""
        for number in range(128):
            with open(f"{out}/{number}", "wb") as file:
                file.write(os.urandom(1 << 20))
        time.sleep(60)
        found = "DONE"
        """,
        met=("build.disk-limit",),
        by="kolm, which looks",
        limits=SMALL,
    ),
    Act(
        name="fill the disk with files without a name",
        body="""
        files = []
        for number in range(128):
            files.append(open("/build/one", "wb"))
            files[-1].write(os.urandom(1 << 20))
            files[-1].flush()
            os.unlink("/build/one")
        time.sleep(60)
        found = "DONE"
        """,
        met=("build.disk-limit",),
        by="kolm, which looks",
        limits=SMALL,
    ),
)


def acts_here() -> tuple[Act, ...]:
    """Those that can be tried on this machine."""
    return tuple(act for act in ACTS if act.machine in (None, os.uname().machine))


def attempt(act: Act, builder: StepBuilder, store, place: Path) -> str:
    """What `act` met, tried for real: its own answer, or the code of the error.

    Args:
        act: What to try.
        builder: Runs it.
        store: The builder's.
        place: An empty folder.
    """
    body = dedent(_HELPERS) + dedent(act.body) + "\nput('text', found)\n"
    with _bait(place) as params:
        drv = derivation(
            code(store, place, body),
            inputs={"data": folder(store, place, {"text": "an input"})},
            params=params,
        )
        try:
            made = builder.build(drv, drv, lambda _event: None)
        except KolmError as error:
            return error.code
        answer = store.read_blob(dict(store.tree(made.contents["out"]).entries)["text"].b3).decode()
    return f"{answer}, gone" if answer == "left one" and not left_behind() else answer


@contextmanager
def _bait(place: Path) -> Iterator[dict[str, str | int]]:
    """Things of the machine that a step may try to reach."""
    secret = place / "secret"
    secret.write_text(SECRET)
    descriptor = os.open(secret, os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    name = f"kolm-hostile-{os.getpid()}"
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.socket(socket.AF_UNIX) as abstract,
        ):
            abstract.bind("\0" + name)
            abstract.listen()
            yield {
                "abstract": name, "outside": str(place), "pid": os.getpid(),
                "port": server.getsockname()[1], "secret": str(secret),
            }  # fmt: skip
    finally:
        os.close(descriptor)


def left_behind() -> list[int]:
    """Processes that carry the mark of the act that leaves one behind."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if MARK.encode() in command:
                found.append(int(entry.name))
    return found
