"""The filter of system calls, run by an interpreter and compared with the kernel's headers."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.engine import seccomp
from kolm_build.engine.seccomp import IS_PROBED_FOR, NEEDS_PRIVILEGE, NEWEST, is_known, step_filter

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOWED = 0
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
EVERY = (*NEEDS_PRIVILEGE, *IS_PROBED_FOR)
LOOKED_AT = (seccomp.CLONE, seccomp.IOCTL, seccomp.SOCKET, seccomp.SOCKETPAIR)

machines = st.sampled_from(sorted(MACHINES))


def verdict(program: bytes, number: int, *arguments: int, arch: int) -> int:
    """What the kernel would answer: an errno, or 0 where the call is allowed.

    Source: Documentation/networking/filter.rst, classic BPF.
    """
    values = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, arch, 0, *(value % (1 << 64) for value in values))
    code = list(struct.iter_unpack("<HBBI", program))
    at, loaded = 0, 0
    while True:
        operation, if_true, if_false, operand = code[at]
        at += 1
        match operation:
            case 0x20:
                (loaded,) = struct.unpack_from("<I", data, operand)
            case 0x15:
                at += if_true if loaded == operand else if_false
            case 0x25:
                at += if_true if loaded > operand else if_false
            case 0x35:
                at += if_true if loaded >= operand else if_false
            case 0x45:
                at += if_true if loaded & operand else if_false
            case 0x06:
                assert operand == 0x7FFF0000 or operand >> 16 == 0x5
                return ALLOWED if operand == 0x7FFF0000 else operand & 0xFFFF
            case _:
                raise AssertionError(operation)


def ask(machine: str, number: int, *arguments: int, network: bool = False) -> int:
    program = step_filter(machine=machine, network=network)
    return verdict(program, number, *arguments, arch=MACHINES[machine])


def numbers(calls, machine: str) -> set[int]:
    return {number for call in calls if (number := getattr(call, machine)) is not None}


@given(machines, st.integers(0, NEWEST), st.integers(0, 1 << 64), st.booleans())
def test_every_call_meets_what_the_table_says(machine, number, argument, network):
    """BOX-14. A call of the table MUST end with the table's errno, and any other be allowed."""
    if number in numbers(LOOKED_AT, machine):
        return
    expected = ALLOWED
    if number in numbers(NEEDS_PRIVILEGE, machine):
        expected = errno.EPERM
    elif number in numbers(IS_PROBED_FOR, machine):
        expected = errno.ENOSYS
    assert ask(machine, number, argument, network=network) == expected


def test_the_page_of_the_specification_names_every_refused_call():
    page = (Path(__file__).parents[2] / "spec" / "sandbox.md").read_text()
    for calls, name in ((NEEDS_PRIVILEGE, "EPERM"), (IS_PROBED_FOR, "ENOSYS")):
        rows = [row for row in page.splitlines() if row.startswith("|") and f"| {name} |" in row]
        named = {word for row in rows for word in re.findall(r"`(\w+)`", row.split("|")[1])}
        assert named - {"clone", "ioctl"} == {call.name for call in calls}


@given(machines, st.integers(NEWEST + 1, (1 << 32) - 1), st.booleans())
def test_a_call_that_is_newer_does_not_exist(machine, number, network):
    """BOX-15. A call of another ABI or newer than the table MUST end with ENOSYS."""
    assert ask(machine, number, network=network) == errno.ENOSYS


@given(machines, st.integers(0, (1 << 32) - 1), st.integers(0, NEWEST))
def test_a_call_of_another_abi_does_not_exist(machine, arch, number):
    if arch != MACHINES[machine]:
        program = step_filter(machine=machine, network=False)
        assert verdict(program, number, arch=arch) == errno.ENOSYS


@given(machines, st.integers(0, (1 << 32) - 1), st.booleans(), st.integers(0, (1 << 32) - 1))
def test_families_of_sockets(machine, family, network, upper):
    """BOX-16. A step MUST open sockets of AF_UNIX alone; with the network also of three more."""
    known = {1, 2, 10, 16} if network else {1}
    expected = ALLOWED if family in known else errno.EAFNOSUPPORT
    argument = upper << 32 | family  # the kernel does not look at the upper half
    number = getattr(seccomp.SOCKET, machine)
    assert ask(machine, number, argument, network=network) == expected
    pair = ALLOWED if family == 1 else errno.EAFNOSUPPORT
    number = getattr(seccomp.SOCKETPAIR, machine)
    assert ask(machine, number, argument, network=network) == pair


@pytest.mark.parametrize("machine", sorted(MACHINES))
@pytest.mark.parametrize("family", [1, 2, 10, 16, 40])
def test_the_families_that_matter(machine, family):
    for network, known in ((False, {1}), (True, {1, 2, 10, 16})):
        expected = ALLOWED if family in known else errno.EAFNOSUPPORT
        number = getattr(seccomp.SOCKET, machine)
        assert ask(machine, number, family, network=network) == expected


@given(machines, st.integers(0, (1 << 64) - 1))
def test_a_clone_with_a_new_namespace_is_refused(machine, flags):
    namespaces = (1 << 17, 1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30)
    refused = any(flags & bit for bit in namespaces)
    number = getattr(seccomp.CLONE, machine)
    assert ask(machine, number, flags) == (errno.EPERM if refused else ALLOWED)


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_what_glibc_passes_for_threads_and_processes_is_allowed(machine):
    for flags in (0x003D0F00, 0x01200011, 0x00004111, 17):
        assert ask(machine, getattr(seccomp.CLONE, machine), flags) == ALLOWED


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_typing_into_a_terminal_is_refused(machine):
    number = getattr(seccomp.IOCTL, machine)
    for command in (0x5412, 0x541C, 1 << 32 | 0x5412):
        assert ask(machine, number, 0, command) == errno.EPERM
    for command in (0x5401, 0x5413, 0x541B, 0):
        assert ask(machine, number, 0x5412, command) == ALLOWED


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_the_numbers_are_those_of_the_kernels_headers(machine):
    """Of the C library's development files, which a machine that compiles the kernels has."""
    pairs = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text())
    known = {name: int(number) for name, number in pairs}
    newest = max(known.values())
    for call in (*EVERY, *LOOKED_AT):
        number = getattr(call, machine)
        if number is None or number <= newest:
            assert known.get(call.name) == number, call.name


def test_a_processor_without_a_table_is_not_known():
    assert is_known("x86_64")
    assert is_known("aarch64")
    assert not is_known("riscv64")


@pytest.mark.parametrize("machine", sorted(MACHINES))
@pytest.mark.parametrize("network", [False, True])
def test_a_filter_is_short_enough_for_the_kernel(machine, network):
    assert len(step_filter(machine=machine, network=network)) // 8 < 4096
