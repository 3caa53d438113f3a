"""The programs of tools/: asked what they do, they say so and do nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
PROGRAMS = [path for path in sorted(TOOLS.glob("*.py")) if "__main__" in path.read_text()]


def test_there_are_programs():
    assert len(PROGRAMS) > 30


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_tells_how_it_is_used(path, tmp_path):
    command = [sys.executable, path, "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {path.name}")
    assert not list(tmp_path.iterdir())
