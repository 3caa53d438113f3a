"""Running the command line inside the test's own process, and outside of it."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from kolm_build.surfaces.cli.door import through_door
from kolm_build.surfaces.cli.parser import dispatch
from kolm_build.surfaces.terminal import Terminal

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Answer:
    status: int
    out: str
    err: str


def kolm(*argv: str) -> Answer:
    """`kolm` in this process."""
    out, err = io.StringIO(), io.StringIO()
    terminal = Terminal(out=out, err=err)
    with redirect_stdout(out):  # argparse prints its help there
        status = through_door(lambda: dispatch(argv, terminal), argv, terminal)
    return Answer(status, out.getvalue(), err.getvalue())


def kolm_process(*argv: str, cwd: Path | None = None, **environment: str) -> Answer:
    """`kolm` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "kolm_build", *argv],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)
