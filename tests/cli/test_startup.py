"""What is imported when nothing heavy is to be done."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kolm_build.attest.keys import create, load
from kolm_build.attest.sign import sign_artifact
from tests.artifact import making
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
    assert not found & {"ctypes", "kolm_build.engine.nvml"}


def test_verify_needs_the_standard_library_and_cryptography_alone(tmp_path):
    """CLI-14."""
    (tmp_path / "x.kolm").write_bytes(b"PK")
    found = imported("verify", str(tmp_path / "x.kolm"), "--no-trust", status=64)
    assert not found & HEAVY
    assert "blake3" not in found


def test_verify_of_a_signed_artifact_reads_no_recipe_and_opens_no_store(tmp_path):
    """CLI-14: what each of them imports would be a tenth of the time of a small file."""
    signed, trust = signed_artifact(tmp_path)
    found = imported("verify", str(signed), "--trust", str(trust))
    assert "kolm_build.attest.trust" in found
    assert not found & HEAVY
    assert not found & {"blake3", "kolm_build.core.recipe", "kolm_build.core.lock"}
    assert not found & {"kolm_build.core.quantisation", "kolm_build.core.attached"}
    assert not [name for name in found if name.startswith(("kolm_build.store", "kolm_build.eng"))]


def signed_artifact(folder: Path) -> tuple[Path, Path]:
    """An artifact signed by a new key, and a trust file for that key."""
    key, trust, signed = folder / "key.pem", folder / "trust.toml", folder / "signed.kolm"
    public = create(key, passphrase=None, unencrypted=True)
    made = making.make(folder / "made")
    sign_artifact(made, signed, key=load(key, passphrase=None))
    trust.write_text(
        "version = 1\n[threshold]\nbuilder = 1\n[[principal]]\n"
        f'name = "team"\nroles = ["builder"]\nkeys = ["{public}"]\n'
    )
    return signed, trust


def test_a_module_run_is_the_program():
    assert kolm_process("--help", cwd=ROOT).out == kolm("--help").out
