"""A second writer of the container, free in every field, and a reader of nothing but bytes."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from zlib import crc32

LOCAL = (
    "sig",
    "need",
    "flags",
    "method",
    "time",
    "date",
    "crc",
    "stored",
    "size",
    "names",
    "extra",
)
CENTRAL = (
    *("sig", "made", "need", "flags", "method", "time", "date", "crc", "stored", "size", "names"),
    *("extra", "comment", "disk", "internal", "external", "offset"),
)


@dataclass
class Entry:
    """A member as it is to be written; `local` and `central` overrule fields by name."""

    name: bytes
    data: bytes
    local: Mapping[str, int] = field(default_factory=dict)
    central: Mapping[str, int] = field(default_factory=dict)
    local_name: bytes | None = None
    gap: bytes | None = None
    behind: bytes = b""
    extra: bytes = b""


def write(
    entries: list[Entry], *, comment: bytes = b"", end: Mapping[str, int] | None = None
) -> bytes:
    """The container of `entries`, in their order."""
    out, directory = b"", b""
    for entry in entries:
        padding = -(len(out) + 30 + len(entry.name)) % 64 if out else 0
        out += bytes(padding) if entry.gap is None else entry.gap
        fields = {
            "sig": 0x04034B50,
            "made": 0x314,
            "need": 20,
            "flags": 0x800,
            "date": 0x21,
            "crc": crc32(entry.data),
            "stored": len(entry.data),
            "size": len(entry.data),
            "names": len(entry.name),
            "extra": len(entry.extra),
            "external": 0o100644 << 16,
            "offset": len(out),
        }
        local = fields | dict(entry.local)
        central = fields | {"sig": 0x02014B50} | dict(entry.central)
        out += struct.pack("<I5H3I2H", *(local.get(name, 0) for name in LOCAL))
        out += (entry.name if entry.local_name is None else entry.local_name) + entry.extra
        out += entry.data + entry.behind
        directory += struct.pack("<I6H3I5H2I", *(central.get(name, 0) for name in CENTRAL))
        directory += entry.name + entry.extra
    record = {"count": len(entries), "size": len(directory), "at": len(out)} | dict(end or {})
    tail = (0, 0, record["count"], record["count"], record["size"], record["at"], len(comment))
    return out + directory + struct.pack("<I4H2IH", 0x06054B50, *tail) + comment
