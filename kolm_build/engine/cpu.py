"""The processor, as far as it can change bits: read from ``/proc/cpuinfo``.

Standard library only and little of it, because every command asks.
"""

from __future__ import annotations

import os

_V2 = {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"}
_V3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
_V4 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

# Extensions beyond the level for which maths libraries have kernels that round differently.
_BIT_RELEVANT = {
    "x86_64": ("amx_bf16", "amx_fp16", "amx_int8", "avx512_bf16", "avx512_fp16", "avx512_vnni",
               "avx_vnni"),
    "aarch64": ("bf16", "fphp", "i8mm", "sme", "sve", "sve2"),  # codespell:ignore sme
}  # fmt: skip

_VENDORS = {"AuthenticAMD": "amd", "GenuineIntel": "intel", "HygonGenuine": "hygon"}


def read_cpuinfo() -> str:
    """The kernel's description of the processors."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123  # spares pathlib
        return file.read()


def cpu_facts(cpuinfo: str) -> dict[str, str]:
    """The first processor's facts."""
    first = cpuinfo.split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def cpu_kind(cpuinfo: str | None = None, arch: str | None = None) -> tuple[str, str]:
    """Instruction set, with the extensions that change bits, and vendor.

    Args:
        cpuinfo: The text of ``/proc/cpuinfo``; read where None.
        arch: The machine's architecture; asked where None.
    """
    facts = cpu_facts(read_cpuinfo() if cpuinfo is None else cpuinfo)
    arch = arch or os.uname().machine
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    extensions = [name for name in _BIT_RELEVANT.get(arch, ()) if name in flags]
    vendor = facts.get("vendor_id") or facts.get("CPU implementer") or "unknown"
    return "+".join([_level(arch, flags), *extensions]), _VENDORS.get(vendor, vendor)


def _level(arch: str, flags: set[str]) -> str:
    if arch != "x86_64":
        return arch
    level = "x86_64"
    needed: set[str] = set()
    for name, more in (("x86_64-v2", _V2), ("x86_64-v3", _V3), ("x86_64-v4", _V4)):
        needed |= more
        if needed <= flags:
            level = name
    return level
