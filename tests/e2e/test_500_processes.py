"""Two builds at once, and a build that is interrupted: real processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

SLOW = """\
import time


def run(inputs, out, params):
    time.sleep(2)
    (out / "length.txt").write_text("12")
"""


def start(project, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kolm_build", *argv],
        cwd=project.root,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_of_two_builds_at_once_one_builds_and_the_other_waits_and_says_for_whom(project):
    # Long enough for the second to start beside the first on a busy machine.
    project.write("length.py", SLOW.replace("sleep(2)", "sleep(6)"))
    project.ok("lock")
    first = start(project, "build", "length")
    assert first.stderr.readline().split() == ["length", "building"]
    second = start(project, "build", "length")
    out_second, err_second = second.communicate(timeout=60)
    out_first, err_first = first.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0), (err_first, err_second)
    assert out_first == out_second
    assert f"length           waiting for process {first.pid}" in err_second
    assert "length           built" in err_first
    assert "built" not in err_second


def test_an_interrupted_build_loses_nothing_and_goes_on(project):
    """CLI-8."""
    project.write("length.py", SLOW.replace("sleep(2)", "sleep(60)"))
    project.ok("lock")
    project.ok("build", "count")
    process = start(project, "build")
    seen = ""
    while "length           building" not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=30)
    assert process.returncode == 130
    assert rest.endswith("interrupted: nothing is lost; run the same command to go on\n")
    project.write("length.py", SLOW.replace("sleep(2)", "sleep(0)"))
    project.ok("lock")
    assert "count" not in project.ok("build").built()
    assert project.ok("store", "fsck").out.endswith("clean\n")


def test_a_terminated_build_leaves_no_step_behind(project):
    project.write("length.py", SLOW.replace("sleep(2)", "sleep(61)"))
    project.ok("lock")
    process = start(project, "build", "length")
    assert process.stderr.readline().split() == ["length", "building"]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    left = subprocess.run(
        ["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, check=False
    )
    assert left.stdout.strip() == b""
