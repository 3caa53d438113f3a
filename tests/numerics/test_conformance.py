"""This machine's kernels print the committed hashes; `make conformance` does it for every build."""

import subprocess

import pytest

from tests.numerics.kernels import all_kernels
from tests.numerics.testing_library import ROOT, library_path

VECTORS = ROOT / "spec" / "vectors" / "numerics-conformance.txt"
PROGRAM = library_path().with_name("conformance")
SETS = [kernels.name for kernels in all_kernels()]


def lines(*arguments: str) -> list[str]:
    """What the program prints."""
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_there_are_at_least_two_hundred_names() -> None:
    """NUM-86."""
    names = [line.split()[0] for line in VECTORS.read_text().splitlines()]
    assert len(names) >= 200
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("isa", SETS)
def test_an_instruction_set_prints_the_committed_lines(isa: str) -> None:
    """NUM-86, NUM-1: for every instruction set of this machine."""
    assert lines(isa) == VECTORS.read_text().splitlines()


def test_flushed_subnormals_are_seen() -> None:
    """NUM-86, NUM-1: subnormal numbers are kept, and the hashes see where they are not."""
    assert lines("--flush") != VECTORS.read_text().splitlines()


def test_a_product_build_cannot_hold_a_mutant() -> None:
    """NUM-86: a mutant's macro without the conformance program's does not compile."""
    header = ROOT / "kolm_build" / "numerics" / "csrc" / "mutants.h"
    command = ["c++", "-std=c++20", "-fsyntax-only", "-x", "c++", str(header)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    for macro in ("LANES=32", "CHUNK=512", "REVERSED"):
        done = subprocess.run(
            [*command, f"-DKOLM_MUTANT_{macro}"], capture_output=True, check=False
        )
        assert b"mutants belong to the conformance program" in done.stderr
