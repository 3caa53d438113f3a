"""A rotating third of the catalogue is trained with, twice, and gives the bytes that it gave."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.models import ROOT

pytestmark = pytest.mark.ml


def third() -> str:
    """Another third with every commit, and the same one whenever a commit is looked at."""
    counted = subprocess.run(
        ["git", "rev-list", "--count", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return str(int(counted.stdout or "0") % 3)


def test_a_third_of_the_algorithms_gives_the_same_bytes_and_learns():
    """ALG-3, ALG-4, ALG-11: threads, instruction set, hash seed, folder, segments."""
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "algorithms.py", "--third", third()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert ": same bytes twice, and something learnt" in done.stdout
