"""What is imported when nothing heavy is to be done."""

import json
import os
import subprocess
import sys

import pytest

from tests.cli.command import ROOT, kolm, kolm_process

SLOW = {
    "typing",
    "pathlib",
    "datetime",
    "sqlite3",
    "urllib.parse",
    "dataclasses",
    "inspect",
    "logging",
}
"""Each takes a twentieth or more of a build with nothing to do."""
HEAVY = {"torch", "transformers", "numpy", "requests", "pydantic", "peft", "trl", "pyarrow"}

RECIPE = """
version = 1
name = "one"
[environment]
distributions = ["blake3"]
[[step]]
name = "a"
step = "script"
inputs = {script = "path:./a.py"}
params = {entry = "a.py"}
"""
SCRIPT = """
def run(inputs, out, params):
    (out / "a").write_text("a")
"""

PROGRAM = """
import json, sys
from kolm_build.surfaces.cli import main
status = main(sys.argv[1:])
print(json.dumps([status, sorted(sys.modules)]), file=sys.stderr)
"""


def imported(*argv: str, status: int = 0) -> set[str]:
    """Every module that is loaded after `kolm` ran."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *argv],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    found, modules = json.loads(done.stderr.splitlines()[-1])
    assert found == status, done.stderr
    return set(modules)


@pytest.mark.parametrize(
    "argv", [["--help"], ["build", "--help"], ["version"], ["completion", "bash"]]
)
def test_help_imports_nothing_heavy(argv):
    """CLI-14."""
    found = imported(*argv)
    assert not found & HEAVY
    assert not found & {"blake3", "sqlite3", "cryptography", "tomllib"}


def test_only_the_command_that_runs_is_imported():
    found = imported("version")
    assert "kolm_build.surfaces.cli.version" in found
    assert "kolm_build.surfaces.cli.build" not in found


def test_a_build_with_nothing_to_do_and_a_lock_diff_import_nothing_heavy(tmp_path):
    """CLI-14."""
    (tmp_path / "kolm.toml").write_text(RECIPE)
    (tmp_path / "a.py").write_text(SCRIPT)
    place = ["-C", str(tmp_path), "--store", str(tmp_path / "store")]
    for command in ("lock", "build"):
        assert kolm(command, *place).status == 0
    lock = str(tmp_path / "kolm.lock")
    assert not imported("build", *place) & HEAVY
    assert not imported("lock", "-C", str(tmp_path), "diff", lock, lock) & HEAVY


def test_a_build_with_nothing_to_do_is_told_before_anything_slow_is_imported(tmp_path, monkeypatch):
    """CLI-14: from argv to the answer, as the installed program runs."""
    (tmp_path / "kolm.toml").write_text(RECIPE)
    (tmp_path / "a.py").write_text(SCRIPT)
    place = ["-C", str(tmp_path), "--store", str(tmp_path / "store")]
    # Sources as old as a user's are: the note of a build is not written while they are fresh.
    monkeypatch.setattr("kolm_build.surfaces.shortcut.time_ns", lambda: 1 << 62)
    for command in ("lock", "build"):
        assert kolm(command, *place).status == 0
    found = imported("build", *place)
    assert "kolm_build.store.glance" in found
    assert "kolm_build.store.local" not in found
    assert not found & SLOW
    assert not found & {"ctypes", "kolm_build.engine.nvml", "kolm_build.engine.accelerators"}


def test_verify_needs_the_standard_library_and_cryptography_alone(tmp_path):
    """CLI-14."""
    (tmp_path / "x.kolm").write_bytes(b"PK")
    found = imported("verify", str(tmp_path / "x.kolm"), "--no-trust", status=64)
    assert not found & HEAVY
    assert "blake3" not in found


def test_a_module_run_is_the_program():
    assert kolm_process("--help", cwd=ROOT).out == kolm("--help").out
