"""What a step may not compute in portable-1 leaves it as an error that the engine can tell."""

from __future__ import annotations

import json
import os

import pytest
import torch

from kolm_build.core.numerics import Numerics
from kolm_build.core.request import EXIT_REFUSED, Circumstances, StepRequest
from kolm_build.engine.failure import refused
from kolm_build.errors import Exit
from kolm_build.numerics.apply import applied_as
from kolm_build.numerics.kernels import LIBRARY
from kolm_build.steps._entry import run_step


def refusal(tmp_path, run, kernels=LIBRARY):
    """The error that an engine makes of what the step `run` said last."""
    fd = os.open(tmp_path / "events", os.O_CREAT | os.O_WRONLY)
    request = StepRequest(
        step="test",
        params={},
        inputs={},
        outputs={},
        scratch=str(tmp_path),
        numerics=Numerics(cls="portable-1"),
        events_fd=fd,
        circumstances=Circumstances(kernels=str(kernels), threads=1),
    )
    (tmp_path / "request").write_bytes(request.encode())
    try:
        argv = ["step.py", str(tmp_path / "request")]
        status = run_step(argv, lambda _request, _events: run(), within=applied_as)
    finally:
        os.close(fd)
    assert status == EXIT_REFUSED
    return refused(json.loads((tmp_path / "events").read_text().splitlines()[-1]), step="test")


def move_a_switch():
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("run", "code"),
    [
        (lambda: torch.fft.fft(torch.ones(8)), "build.uncertified-operator"),
        (lambda: torch.ones(8, dtype=torch.float64).sum(), "build.uncertified-operator"),
        (move_a_switch, "build.uncertified-setting"),
    ],
)
def test_what_the_guard_refuses_is_a_build_error_of_its_own(tmp_path, run, code):
    """NUM-106, STEP-4."""
    error = refusal(tmp_path, run)
    assert (error.code, error.exit) == (code, Exit.BUILD)
