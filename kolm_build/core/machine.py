"""Machines: hardware and software facts that can change bits, as a value.

A machine is circumstance: it travels beside a realisation and explains a difference. Only its
`Platform` part is ever an input of a derivation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from kolm_build.core import cbor
from kolm_build.core.digest import Digest, RecordKind
from kolm_build.core.fields import Fields
from kolm_build.core.numerics import Platform
from kolm_build.errors import InvalidRecordError

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One accelerator.

    Attributes:
        name: The product's name.
        architecture: Such as ``sm_90``.
        driver: The driver's version.
        memory_bytes: Its memory.
    """

    name: str
    architecture: str
    driver: str
    memory_bytes: int

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {
            "name": self.name,
            "architecture": self.architecture,
            "driver": self.driver,
            "memory_bytes": self.memory_bytes,
        }

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        made = cls(
            name=fields.text("name"),
            architecture=fields.text("architecture"),
            driver=fields.text("driver"),
            memory_bytes=fields.integer("memory_bytes"),
        )
        fields.done()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine as the engine found it.

    Attributes:
        platform: What a `native-1` derivation is pinned to.
        cpu: The processor's name.
        cores: Usable processor cores.
        memory_bytes: Usable memory.
        kernel: The operating system's kernel and release.
        libc: The C library and its version, which computes some of the maths.
        accelerators: What else can compute.
    """

    platform: Platform
    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    libc: str
    accelerators: tuple[Accelerator, ...] = ()

    def __post_init__(self) -> None:
        for name in ("cores", "memory_bytes"):
            if getattr(self, name) < 1:
                raise InvalidRecordError("out of range", where=name, expected="1 or more")

    def to_value(self) -> dict[str, object]:
        """The record's plain value."""
        return {
            "v": VERSION,
            "platform": self.platform.to_value(),
            "cpu": self.cpu,
            "cores": self.cores,
            "memory_bytes": self.memory_bytes,
            "kernel": self.kernel,
            "libc": self.libc,
            "accelerators": [accelerator.to_value() for accelerator in self.accelerators],
        }

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        fields.version(VERSION)
        fields.require("accelerators")
        made = cls(
            platform=fields.record("platform", Platform.from_value),
            cpu=fields.text("cpu"),
            cores=fields.integer("cores"),
            memory_bytes=fields.integer("memory_bytes"),
            kernel=fields.text("kernel"),
            libc=fields.text("libc"),
            accelerators=fields.records("accelerators", Accelerator.from_value),
        )
        fields.done()
        return made

    @property
    def digest(self) -> Digest:
        """The machine's digest: equal for machines that no fact here tells apart."""
        return Digest.of_record(cbor.encode(self.to_value()), RecordKind.MACHINE)
