"""Devices that a model may have to run on (docs/quantisation.md says where the figures are from).

The table is literal. Whoever has another device names it in the recipe, as ``[score.device]``,
and gives its memory with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from kolm_build.core.bounded import unknown_name
from kolm_build.core.sections import Device
from kolm_build.errors import UsageError

GIB = 1 << 30
SYSTEM_BYTES = 256 << 20
"""Memory that a device's system needs beside the program."""

_MEMORY = re.compile(r"([1-9][0-9]{0,5})([MG])")
_UNITS = {"M": 1 << 20, "G": GIB}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A device that a model has to run on.

    Attributes:
        name: What it is called.
        ram_bytes: Its memory, all of it.
        flops_per_s: Operations of binary32 in a second, all cores together.
        bytes_per_s: Bytes that it reads from memory in a second.
    """

    name: str
    ram_bytes: int
    flops_per_s: int
    bytes_per_s: int

    @property
    def free_bytes(self) -> int:
        """The memory that is left for a program."""
        return max(0, self.ram_bytes - SYSTEM_BYTES)


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        target.name: target
        for target in (
            Target(
                name="raspberry-pi-4",
                ram_bytes=2 * GIB,
                flops_per_s=23_000_000_000,
                bytes_per_s=5_500_000_000,
            ),
            Target(
                name="raspberry-pi-5",
                ram_bytes=4 * GIB,
                flops_per_s=60_000_000_000,
                bytes_per_s=9_000_000_000,
            ),
            Target(
                name="two-core-x86",
                ram_bytes=4 * GIB,
                flops_per_s=50_000_000_000,
                bytes_per_s=10_000_000_000,
            ),
        )
    }
)
"""Every device that has a name here."""


def parse_target(text: str, own: Device) -> Target:
    """The device that `text` names: ``NAME``, or ``NAME:MEMORY`` such as ``raspberry-pi-5:8G``.

    Args:
        text: The name, of this table or that of `own`, which has no memory unless it is said.
        own: The device of the recipe.

    Raises:
        UsageError: There is no such device, or its memory is not known or not a size.
    """
    name, colon, memory = text.partition(":")
    target = TARGETS.get(name)
    if name == own.name:
        if not colon:
            raise UsageError(
                "the memory of the recipe's own device is not known",
                where="--target",
                expected=f"such as {name}:4G",
                actual=repr(text)[:80],
            )
        target = Target(
            name=name, ram_bytes=0, flops_per_s=own.flops_per_s, bytes_per_s=own.bytes_per_s
        )
    if target is None:
        raise _unknown(name, own)
    return replace(target, ram_bytes=_memory(memory)) if colon else target


def _memory(text: str) -> int:
    match = _MEMORY.fullmatch(text)
    if match is None:
        raise UsageError(
            "not a size of memory",
            where="--target",
            expected="such as 512M or 8G",
            actual=repr(text)[:80],
        )
    return int(match[1]) * _UNITS[match[2]]


def _unknown(name: str, own: Device) -> UsageError:
    found = unknown_name("target", name, (*TARGETS, own.name), where="--target")
    return UsageError(
        found.reason,
        where=found.where,
        expected=found.expected,
        actual=found.actual,
        advice=found.advice or "Another device goes into the recipe, as [score.device].",
    )
