"""What is imported when nothing heavy is to be done."""

import json
import os
import subprocess
import sys

import pytest

from tests.cli.command import ROOT, kolm, kolm_process

HEAVY = {"torch", "transformers", "numpy", "requests", "pydantic", "peft", "trl", "pyarrow"}

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
    (tmp_path / "kolm.toml").write_text(
        'version = 1\nname = "one"\n[environment]\ndistributions = ["blake3"]\n'
        '[[step]]\nname = "a"\nstep = "script"\ninputs = {script = "path:./a.py"}\n'
        'params = {entry = "a.py"}\n'
    )
    (tmp_path / "a.py").write_text(
        "def run(inputs, out, params):\n    (out / 'a').write_text('a')\n"
    )
    place = ["-C", str(tmp_path), "--store", str(tmp_path / "store")]
    for command in ("lock", "build"):
        assert kolm(command, *place).status == 0
    lock = str(tmp_path / "kolm.lock")
    assert not imported("build", *place) & HEAVY
    assert not imported("lock", "-C", str(tmp_path), "diff", lock, lock) & HEAVY


def test_verify_needs_the_standard_library_and_cryptography_alone(tmp_path):
    """CLI-14."""
    (tmp_path / "x.kolm").write_bytes(b"PK")
    found = imported("verify", str(tmp_path / "x.kolm"), "--no-trust", status=64)
    assert not found & HEAVY
    assert "blake3" not in found


def test_a_module_run_is_the_program():
    assert kolm_process("--help", cwd=ROOT).out == kolm("--help").out
