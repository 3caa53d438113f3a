"""A training that is killed goes on from its last part, to the bytes of one that was let be."""

import subprocess
import sys
from dataclasses import replace

import pytest

from tests.support.models import ROOT, example

TOOL = ROOT / "tools" / "kill_training.py"


@pytest.mark.ml
def test_a_training_killed_by_sigkill_goes_on_to_the_same_bytes(tmp_path):
    """RECIPE-24, ALG-11: kolm, its sandbox and its step are killed at once."""
    few = ("--kills", "1", "--steps", "4", "--checkpoint-steps", "2", "--seed", "5")
    done = subprocess.run(
        [sys.executable, TOOL, *few, "--place", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 kills: resumed to the same bytes; 1 inside the training" in done.stdout


@pytest.fixture
def tool(monkeypatch):
    """The tool as a module."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    return example(TOOL)


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        ({}, ""),
        ({"digests": {"train-1.adapter": "b3:2"}}, "differ: train-1.adapter"),
        ({"digests": {}}, "differ: train-1.adapter"),
        ({"kept": frozenset()}, "lost: train-1-after-2"),
        ({"left": 2}, "2 processes ran on"),
        ({"findings": 1}, "fsck: 1 findings"),
    ],
)
def test_the_tool_sees_what_did_not_hold(tool, change, trouble):
    reference = tool.Reference(digests={"train-1.adapter": "b3:1"}, seconds={})
    good = tool.Round(
        last=tool.Mark("train-1", "started", 0),
        after_s=1.0,
        said=frozenset({"train-1-after-2"}),
        kept=frozenset({"train-1-after-2"}),
        left=0,
        digests={"train-1.adapter": "b3:1"},
        litter=0,
        findings=0,
    )
    assert replace(good, **change).trouble(reference) == trouble
