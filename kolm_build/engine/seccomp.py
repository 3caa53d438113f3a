"""The system calls that a step is refused: a filter program for the kernel (spec/sandbox.md).

A call that programs probe for, and do without, says ENOSYS, as on a kernel that does not have it;
a call that needs a privilege says EPERM, as to anybody who does not have it. Nothing is killed:
the step sees an ordinary error. Pure: the same machine name and network give the same bytes.

Source: Linux ``include/uapi/linux/{filter,seccomp,audit}.h``, ``arch/x86/entry/syscalls``,
``include/uapi/asm-generic/unistd.h``.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from dataclasses import dataclass

NEWEST = 462
"""The newest call that steps may know (``mseal``); one that is newer does not exist for them."""


@dataclass(frozen=True, slots=True)
class Call:
    """A refused system call.

    Attributes:
        name: As the kernel has it.
        x86_64: Its number there; None where it does not exist.
        aarch64: Its number there; None where it does not exist.
    """

    name: str
    x86_64: int | None
    aarch64: int | None


NEEDS_PRIVILEGE = (
    # Other processes: their memory, registers and descriptors.
    Call("ptrace", 101, 117),
    Call("process_vm_readv", 310, 270),
    Call("process_vm_writev", 311, 271),
    Call("process_madvise", 440, 440),
    Call("kcmp", 312, 272),
    Call("pidfd_getfd", 438, 438),
    # The layout of the file system, and files by handle past it.
    Call("mount", 165, 40),
    Call("umount2", 166, 39),
    Call("pivot_root", 155, 41),
    Call("chroot", 161, 51),
    Call("open_tree", 428, 428),
    Call("move_mount", 429, 429),
    Call("fsopen", 430, 430),
    Call("fsconfig", 431, 431),
    Call("fsmount", 432, 432),
    Call("fspick", 433, 433),
    Call("mount_setattr", 442, 442),
    Call("name_to_handle_at", 303, 264),
    Call("open_by_handle_at", 304, 265),
    Call("fanotify_init", 300, 262),
    Call("quotactl", 179, 60),
    Call("quotactl_fd", 443, 443),
    # New namespaces, in which a step would have privileges again; `clone` is looked at by flags.
    Call("unshare", 272, 97),
    Call("setns", 308, 268),
    # The machine.
    Call("kexec_load", 246, 104),
    Call("kexec_file_load", 320, 294),
    Call("init_module", 175, 105),
    Call("finit_module", 313, 273),
    Call("delete_module", 176, 106),
    Call("reboot", 169, 142),
    Call("swapon", 167, 224),
    Call("swapoff", 168, 225),
    Call("acct", 163, 89),
    Call("syslog", 103, 116),
    Call("vhangup", 153, 58),
    Call("sethostname", 170, 161),
    Call("setdomainname", 171, 162),
    Call("iopl", 172, None),
    Call("ioperm", 173, None),
    Call("modify_ldt", 154, None),
    # Its clock.
    Call("settimeofday", 164, 170),
    Call("clock_settime", 227, 112),
    Call("clock_adjtime", 305, 266),
    Call("adjtimex", 159, 171),
    # The kernel's own programs and counters.
    Call("bpf", 321, 280),
    Call("perf_event_open", 298, 241),
    Call("migrate_pages", 256, 238),
    Call("move_pages", 279, 239),
)
"""Refused with EPERM: what the kernel says to a user without the privilege."""

IS_PROBED_FOR = (
    # Its flags lie in memory, where a filter cannot look; libraries then use `clone`.
    Call("clone3", 435, 435),
    # Does what other calls do, past the filter.
    Call("io_uring_setup", 425, 425),
    Call("io_uring_enter", 426, 426),
    Call("io_uring_register", 427, 427),
    Call("userfaultfd", 323, 282),
    # Memory that belongs to no process and no folder, so that no limit would see it.
    Call("memfd_create", 319, 279),
    Call("memfd_secret", 447, 447),
    Call("shmget", 29, 194),
    # Keys are kept for the user, not for the sandbox.
    Call("add_key", 248, 217),
    Call("request_key", 249, 218),
    Call("keyctl", 250, 219),
    # Not in every kernel, and of no use here.
    Call("lookup_dcookie", 212, 18),
    Call("nfsservctl", 180, 42),
    Call("uselib", 134, None),
    Call("_sysctl", 156, None),
)
"""Refused with ENOSYS: what a kernel says that does not have the call."""

CLONE = Call("clone", 56, 220)
IOCTL = Call("ioctl", 16, 29)
SOCKET = Call("socket", 41, 198)
SOCKETPAIR = Call("socketpair", 53, 199)

NEW_NAMESPACES = 0x7E020000
"""The flags of `clone`: mount, cgroup, UTS, IPC, user, PID and network namespace."""
TERMINAL_INPUT = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX: text typed into a terminal in its user's name."""
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_AT, _SECOND_AT = 0, 4, 16, 24
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000

_Code = list[tuple[int, int, int, int]]
"""Instructions: operation, how many to skip if true, if false, operand."""


def is_known(machine: str) -> bool:
    """Whether there is a filter for `machine`, as ``uname`` calls it."""
    return machine in _ARCHITECTURES


def step_filter(*, machine: str, network: bool) -> bytes:
    """The filter of a step, as the kernel and ``bwrap --seccomp`` take it.

    Args:
        machine: ``x86_64`` or ``aarch64``.
        network: Whether the step has the network.
    """
    families = (AF_UNIX, AF_INET, AF_INET6, AF_NETLINK) if network else (AF_UNIX,)
    program = [
        *_of_another_abi(machine),
        *_refusals(NEEDS_PRIVILEGE, machine, errno.EPERM),
        *_refusals(IS_PROBED_FOR, machine, errno.ENOSYS),
        *_if_call(CLONE, machine, _refuse_bits(NEW_NAMESPACES)),
        *_if_call(IOCTL, machine, _refuse_values(TERMINAL_INPUT)),
        *_if_call(SOCKET, machine, _allow_values(families)),
        *_if_call(SOCKETPAIR, machine, _allow_values((AF_UNIX,))),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def _of_another_abi(machine: str) -> _Code:
    """Refuse calls of other ABIs and newer ones; the call's number is loaded after.

    Those of x32 have the architecture of x86_64 and numbers from 2^30 on.
    """
    return [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        _refuse(errno.ENOSYS),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_GREATER, 0, 1, NEWEST),
        _refuse(errno.ENOSYS),
    ]


def _refuse(number: int) -> tuple[int, int, int, int]:
    return (_RETURN, 0, 0, _ERRNO | number)


def _refusals(calls: Iterable[Call], machine: str, number: int) -> _Code:
    return [part for call in calls for part in _if_call(call, machine, [_refuse(number)])]


def _if_call(call: Call, machine: str, body: _Code) -> _Code:
    """`body`, which ends with a verdict, for `call` alone."""
    number = call.x86_64 if machine == "x86_64" else call.aarch64
    return [] if number is None else [(_EQUAL, 0, len(body), number), *body]


def _refuse_bits(bits: int) -> _Code:
    """Refuse a first argument with any of `bits`; its upper half means nothing to the kernel."""
    return [
        (_LOAD, 0, 0, _FIRST_AT),
        (_ANY_BIT, 0, 1, bits),
        _refuse(errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _refuse_values(values: tuple[int, ...]) -> _Code:
    """Refuse a second argument that is one of `values`."""
    tests = [(_EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
    allow = (_RETURN, 0, 0, _ALLOW)
    return [(_LOAD, 0, 0, _SECOND_AT), *tests, allow, _refuse(errno.EPERM)]


def _allow_values(values: tuple[int, ...]) -> _Code:
    """Refuse a first argument that is none of `values`, families of addresses."""
    tests = [(_EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
    allow = (_RETURN, 0, 0, _ALLOW)
    return [(_LOAD, 0, 0, _FIRST_AT), *tests, _refuse(errno.EAFNOSUPPORT), allow]
