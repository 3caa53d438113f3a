"""Processes whose C library computes as it would on another processor."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.models import ROOT

PROCESSORS = ("", "-FMA,-AVX2", "-FMA,-AVX2,-AVX")
"""What glibc is told of the processor: all that it has, and less. Another library ignores it."""


def printed_on_every_processor(code: str) -> set[str]:
    """What the program `code` prints in a process on each of `PROCESSORS`."""
    return {_printed(code, hwcaps) for hwcaps in PROCESSORS}


def _printed(code: str, hwcaps: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "GLIBC_TUNABLES": f"glibc.cpu.hwcaps={hwcaps}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
