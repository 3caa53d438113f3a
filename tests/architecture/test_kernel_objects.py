"""Kernels of one instruction set run where it is, and leave nothing for the others to run."""

import subprocess
from pathlib import Path

import pytest

OBJECTS = Path(__file__).resolve().parents[2] / "build/CMakeFiles"
SETS = {"avx512": 8, "avx2": 8, "neon": 8, "avx512vnni": 2, "avx2vnni": 2, "neondot": 2}
"""How many objects each instruction set has at the least."""
CHOSEN = [isa for isa in SETS if (OBJECTS / f"kernels_{isa}.dir").is_dir()]


def symbols(isa: str) -> list[tuple[str, str]]:
    """Kind and name of every symbol that the objects of `isa` define."""
    objects = sorted((OBJECTS / f"kernels_{isa}.dir").rglob("*.o"))
    assert len(objects) >= SETS[isa]
    listed = subprocess.run(
        ["nm", "--demangle", "--defined-only", *objects], capture_output=True, text=True, check=True
    )
    lines = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return [(line[1], line[2]) for line in lines if len(line) == 3]


def test_there_are_objects_to_look_at():
    assert CHOSEN


@pytest.mark.parametrize("isa", CHOSEN)
def test_no_code_of_an_instruction_set_runs_as_the_library_is_loaded(isa):
    """NUM-107. A machine that lacks it would end in an illegal instruction."""
    assert [name for _, name in symbols(isa) if "GLOBAL__sub" in name] == []


@pytest.mark.parametrize("isa", CHOSEN)
def test_the_linker_cannot_give_code_of_an_instruction_set_to_another(isa):
    """NUM-107. Of equal weak symbols it keeps any one."""
    shared = [name for kind, name in symbols(isa) if kind in "WVu"]
    assert [name for name in shared if f"kolm::{isa}::" not in name] == []
