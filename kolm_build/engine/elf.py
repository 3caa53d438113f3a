"""Just enough of ELF to know which libraries a program or library needs at run time."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"\x7fELF"
_LITTLE_64 = b"\x02\x01"
_HEADER = struct.Struct("<16xHHIQQQIHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
_LOAD, _DYNAMIC_SEGMENT, _INTERPRETER = 1, 2, 3
_NEEDED, _STRINGS = 1, 5
_MAX_SEGMENTS = 256
_MAX_ENTRIES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Elf:
    """What an ELF file asks of the dynamic loader.

    Attributes:
        machine: The architecture's number.
        needed: Names of libraries, in order.
        loader: Path of the dynamic loader; empty where it names none.
    """

    machine: int
    needed: tuple[str, ...]
    loader: str


def read_elf(path: Path) -> Elf | None:
    """What `path` needs; None where it is no 64-bit little-endian ELF file, or a broken one."""
    with path.open("rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:4] != _MAGIC or head[4:6] != _LITTLE_64:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _parse(data)
            except (struct.error, IndexError, OverflowError, ValueError):
                return None


def _parse(data: mmap.mmap) -> Elf:
    _, machine, _, _, offset, _, _, _, size, count = _HEADER.unpack_from(data)
    segments = [
        _SEGMENT.unpack_from(data, offset + index * size)
        for index in range(min(count, _MAX_SEGMENTS))
    ]
    loads = [(one[3], one[2], one[5]) for one in segments if one[0] == _LOAD]
    needed: tuple[str, ...] = ()
    loader = ""
    for kind, _, at, _, _, length, _, _ in segments:
        if kind == _DYNAMIC_SEGMENT:
            needed = tuple(_needed(data, at, length, loads))
        elif kind == _INTERPRETER:
            loader = data[at : at + length].rstrip(b"\0").decode("ascii")
    return Elf(machine=machine, needed=needed, loader=loader)


def _needed(
    data: mmap.mmap, at: int, length: int, loads: list[tuple[int, int, int]]
) -> Iterator[str]:
    count = min(length // _DYNAMIC.size, _MAX_ENTRIES)
    entries = [_DYNAMIC.unpack_from(data, at + index * _DYNAMIC.size) for index in range(count)]
    strings = next((value for tag, value in entries if tag == _STRINGS), None)
    if strings is None:
        return
    base = _offset(strings, loads)
    for tag, value in entries:
        if tag == _NEEDED:
            end = data.find(b"\0", base + value)
            yield data[base + value : end].decode("ascii")


def _offset(address: int, loads: list[tuple[int, int, int]]) -> int:
    """Where in the file the byte at a virtual address is."""
    for start, offset, size in loads:
        if start <= address < start + size:
            return offset + address - start
    raise ValueError("an address outside the file")
