"""Native libraries outside the distributions: libc, libstdc++ and the others a process maps.

They belong to the machine and not to the lock. They are found by reading what every program and
library of an environment needs, and what these need in turn.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from kolm_build.engine.elf import read_elf

SHELL = "/bin/sh"
"""The first process of a sandbox."""

LIBRARIES = "lib"
PROGRAMS = "bin"
_FOLDERS = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")


def native_files(files: Iterable[Path], own: Iterable[str]) -> Mapping[str, Path]:
    """What a sandbox needs of the system, so that programs and libraries `files` run in it.

    Args:
        files: Files of an environment; what is not ELF is passed over.
        own: Names of libraries that the environment brings itself.

    Returns:
        ``lib/NAME`` and ``bin/sh`` to where each lies. A name that is not on this machine is
        left out: wheels bring test programs that need what nobody has.
    """
    found: dict[str, Path] = {f"{PROGRAMS}/sh": Path(SHELL).resolve()}
    brought = set(own)
    todo = [*files, Path(SHELL)]
    while todo:
        for name, machine in _needs(todo.pop()):
            place = f"{LIBRARIES}/{name}"
            if name in brought or place in found:
                continue
            library = _find(name, machine)
            if library is not None:
                found[place] = library
                todo.append(library)
    return dict(sorted(found.items()))


def _needs(path: Path) -> Iterator[tuple[str, int]]:
    """The names that an ELF file needs, its loader among them, and its architecture."""
    elf = read_elf(path)
    if elf is None:
        return
    for name in elf.needed:
        yield name, elf.machine
    if elf.loader:
        yield Path(elf.loader).name, elf.machine


def _find(name: str, machine: int) -> Path | None:
    for folder in _folders():
        path = Path(folder, name)
        if path.is_file():
            elf = read_elf(path)
            if elf is not None and elf.machine == machine:
                return path
    return None


@lru_cache(maxsize=1)
def _folders() -> tuple[str, ...]:
    """Where the loader looks: the usual folders, and the architecture's own below them."""
    below = [
        entry.path
        for parent in ("/lib", "/usr/lib")
        if os.path.isdir(parent)  # noqa: PTH112
        for entry in sorted(os.scandir(parent), key=lambda entry: entry.name)
        if "-linux-" in entry.name and entry.is_dir()
    ]
    return (*below, *_FOLDERS)
