"""What a derivation says about arithmetic: the numerics class and the platform (design section 7).

`portable-1` gives the same bits on any machine, so a platform is not an input. `native-1` is the
stock kernels with every determinism switch set: its bits belong to one kind of machine, and the
platform is part of the derivation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError

EXACT = "exact-1"
NATIVE = "native-1"
PORTABLE = "portable-1"
CLASSES = (EXACT, NATIVE, PORTABLE)

CUBLAS_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""The variable and its value with which cuBLAS has one workspace a stream and repeats its bits. It
reads this once, so whoever starts the process sets it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    """How a step may compute.

    Attributes:
        cls: ``exact-1`` (no floating point decides a byte), ``native-1`` or ``portable-1``.
        seed: Seed of every random choice.
        threads: Compute threads, where they are part of the result: in `native-1`. In `portable-1`
            it is 1, and how many there really are is circumstance.
    """

    cls: str
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.cls not in CLASSES:
            raise InvalidRecordError(
                "unknown numerics class",
                where="class",
                expected=" or ".join(CLASSES),
                actual=repr(self.cls),
            )
        if not 0 <= self.seed < 1 << 63:
            raise InvalidRecordError("seed out of range", where="seed", actual=str(self.seed))
        if not 1 <= self.threads <= 1024:
            raise InvalidRecordError(
                "thread count out of range",
                where="threads",
                expected="1 to 1024",
                actual=str(self.threads),
            )
        if self.cls == PORTABLE and self.threads != 1:
            raise InvalidRecordError(
                "threads are no part of a result in portable-1",
                where="threads",
                actual=str(self.threads),
                advice=f"Leave `threads` out; `class = '{NATIVE}'` is the class that has it.",
            )

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {"class": self.cls, "seed": self.seed, "threads": self.threads}

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        made = cls(
            cls=fields.text("class"),
            seed=fields.integer("seed"),
            threads=fields.integer("threads"),
        )
        fields.done()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """The kind of machine whose bits a `native-1` derivation promises.

    Attributes:
        isa: Instruction set level and the extensions that change bits, such as
            ``x86_64-v4+avx512_bf16``.
        vendor: CPU vendor, since maths libraries dispatch on it.
        accel: Accelerator architecture, or ``none``.
    """

    isa: str
    vendor: str
    accel: str = "none"

    def to_value(self) -> dict[str, object]:
        """The plain value."""
        return {"isa": self.isa, "vendor": self.vendor, "accel": self.accel}

    @classmethod
    def from_value(cls, value: object) -> Self:
        """The inverse of `to_value`, strict."""
        fields = Fields(value)
        made = cls(isa=fields.text("isa"), vendor=fields.text("vendor"), accel=fields.text("accel"))
        fields.done()
        return made

    def __str__(self) -> str:
        return f"{self.isa}/{self.vendor}/{self.accel}"
