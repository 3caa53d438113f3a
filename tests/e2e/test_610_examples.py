"""The examples, built here, have the bytes that are committed, whatever this machine is.

What a node's bytes are does not depend on the machine (NUM-100). The artifact tells how it was
made, so its own digest is the committed one where interpreter and distributions are those of the
committed lock; everything in it that was computed is compared everywhere.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from kolm_build.core.outputs import ANY_PLATFORM, Outputs, parse_outputs

ROOT = Path(__file__).resolve().parent.parent.parent
COMPUTED = (
    "base", "base-evaluation", "dataset", "evaluation", "gate", "merge-1", "score", "train-1",
)  # fmt: skip
QUANTISED = ("full-evaluation", "full-score", "quantise")

pytestmark = [pytest.mark.ml, pytest.mark.xdist_group("model")]


@dataclass(frozen=True)
class Example:
    """A copy of an example, its committed lock, and a store of its own."""

    name: str
    home: Path

    @property
    def project(self) -> Path:
        return self.home / self.name

    def kolm(self, command: str, *argv: str) -> subprocess.CompletedProcess[str]:
        variables = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.home),
            "KOLM_STORE": str(self.home / "store"),
        } | {name: value for name, value in os.environ.items() if "PIP" in name or "SSL" in name}
        return subprocess.run(
            [sys.executable, "-m", "kolm_build", command, "-C", str(self.project), *argv],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )

    def expected(self) -> Outputs:
        file = ROOT / "lockfiles" / f"{self.name}.outputs"
        return parse_outputs(file.read_text("utf-8"), file=file.name)

    def lock(self) -> bool:
        """Whether the committed lock fits this environment; if not, one is made that does."""
        shutil.copy(ROOT / "lockfiles" / f"{self.name}.lock", self.project / "kolm.lock")
        fits = self.kolm("lock", "--check", "--update", "environment").returncode == 0
        if not fits:
            done = self.kolm("lock", "--update", "environment")
            assert done.returncode == 0, done.stderr
        return fits

    def built(self, *targets: str) -> dict[str, str]:
        """Target to content."""
        done = self.kolm("build", "--no-sign", "--json", *targets)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        return json.loads(done.stdout.splitlines()[-1])["targets"]


@pytest.fixture(params=["tiny", "tiny-int4", "icd-small"])
def example(request, tmp_path) -> Example:
    made = Example(request.param, tmp_path)
    shutil.copytree(
        ROOT / "examples" / made.name, made.project, ignore=shutil.ignore_patterns("__*")
    )
    return made


def test_an_example_gives_the_committed_bytes_on_this_machine(example):
    """NUM-100, NUM-105."""
    fits = example.lock()
    computed = (*COMPUTED, *QUANTISED) if example.name.endswith("-int4") else COMPUTED
    targets = (*computed, "package") if fits else computed
    found = example.built(*targets)
    expected = {
        entry.target if entry.output == "out" else f"{entry.target}.{entry.output}": entry
        for entry in example.expected().entries
    }
    assert set(found) <= set(expected)
    assert {name: str(expected[name].tree) for name in found} == found


@pytest.mark.parametrize(
    "name", ["icd-small", "icd-triage", "icd-triage-int4", "tiny", "tiny-int4"]
)
def test_committed_outputs_name_no_machine(name, tmp_path):
    """LOCK-12."""
    entries = Example(name, tmp_path).expected().entries
    assert "package" in {entry.target for entry in entries}
    assert {entry.platform for entry in entries} == {ANY_PLATFORM}
