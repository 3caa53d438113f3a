import errno
import io
import json
import os
import signal
import subprocess
import sys

import pytest

from kolm_build.errors import (
    CorruptObjectError,
    Exit,
    GateFailedError,
    KolmError,
    NotReproducibleError,
    StaleLockError,
)
from kolm_build.surfaces.cli.door import TerminatedError, through_door
from kolm_build.surfaces.terminal import Terminal
from tests.cli.command import ROOT, kolm_process


def through(raised: BaseException, *argv: str) -> tuple[int, str, str]:
    terminal = Terminal(out=io.StringIO(), err=io.StringIO())

    def command() -> int:
        raise raised

    status = through_door(command, argv, terminal)
    return status, terminal.out.getvalue(), terminal.err.getvalue()


def every_error(base: type[KolmError] = KolmError) -> list[type[KolmError]]:
    return [base, *(each for below in base.__subclasses__() for each in every_error(below))]


@pytest.mark.parametrize("kind", every_error())
def test_every_error_of_the_project_exits_with_its_own_bits(kind):
    assert through(kind("why", file="f"))[0] == kind.exit != 0


def test_an_error_shows_file_path_expected_actual_and_advice():
    error = StaleLockError(
        "changed", file="rows.jsonl", where="tree", expected="a", actual="b", advice="Lock again."
    )
    assert through(error) == (
        2,
        "",
        "error: rows.jsonl: tree: changed\n  expected: a\n  actual:   b\n  Lock again.\n",
    )


def test_under_json_an_error_is_one_line_on_stdout():
    """CLI-4, CLI-5."""
    status, out, err = through(GateFailedError("accuracy"), "build", "--json")
    assert status == 32
    assert json.loads(out) == {
        "error": {"code": "gate.failed", "reason": "accuracy"},
        "event": "error",
    }
    assert err == "error: accuracy\n"


def test_several_errors_are_told_one_after_the_other_and_their_bits_are_or_ed():
    """CLI-6."""
    group = ExceptionGroup("", [NotReproducibleError("a"), CorruptObjectError("b")])
    assert through(group) == (Exit.NOT_REPRODUCIBLE | Exit.STORE, "", "error: a\nerror: b\n")


@pytest.mark.parametrize(
    ("number", "code", "status"),
    [
        (errno.ENOSPC, "machine.no-space", 1),
        (errno.EDQUOT, "machine.no-space", 1),
        (errno.EACCES, "machine.permission", 1),
        (errno.EPERM, "machine.permission", 1),
        (errno.EROFS, "store.read-only", 4),
        (errno.ENOENT, "machine.error", 1),
        (errno.EIO, "machine.error", 1),
        (errno.EMFILE, "machine.error", 1),
        (errno.ENOMEM, "machine.error", 1),
        (errno.ENETUNREACH, "machine.network", 1),
    ],
)
def test_what_the_operating_system_refuses_is_an_error_with_a_code(number, code, status):
    error = OSError(number, os.strerror(number), "some/file")
    found, out, err = through(error, "--json")
    assert (found, json.loads(out)["error"]["code"]) == (status, code)
    assert "some/file" in err or number in (errno.EMFILE, errno.ENOMEM)


def test_out_of_memory_is_the_machines_trouble():
    assert through(MemoryError())[0] == Exit.MACHINE


def test_an_unforeseen_error_is_saved_to_a_private_file_and_named(tmp_path, monkeypatch):
    """CLI-7."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    status, out, err = through(ZeroDivisionError("secret"), "run", "a prompt about a patient")
    (report,) = tmp_path.glob("kolm-bug-*.txt")
    assert (status, out) == (128, "")
    assert err == (
        "error: this is a bug in kolm: ZeroDivisionError\n"
        f"  What happened is written in {report}; please send it to the authors.\n"
    )
    text = report.read_text()
    assert "Traceback" in text
    assert "command: run\n" in text
    assert "patient" not in text
    assert report.stat().st_mode & 0o077 == 0


def test_a_report_that_cannot_be_written_is_no_second_trouble(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/nowhere/at/all")
    status, _, err = through(ZeroDivisionError())
    assert status == 128
    assert "could not be written" in err


def test_an_interrupt_exits_130_and_says_that_nothing_is_lost():
    """CLI-8."""
    said = "interrupted: nothing is lost; run the same command to go on\n"
    assert through(KeyboardInterrupt()) == (130, "", said)


def test_sigterm_is_told_apart_from_an_interrupt():
    said = "terminated: nothing is lost; run the same command to go on\n"
    assert through(TerminatedError()) == (143, "", said)


def test_a_reader_that_goes_away_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "kolm_build", "completion", "bash"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
    process.stderr.close()


def test_closed_streams_do_no_harm():
    shell = f"exec {sys.executable} -m kolm_build version >&- 2>&-"
    done = subprocess.run(
        ["sh", "-c", shell], check=False, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0


def test_a_real_sigterm_ends_the_program_with_143(tmp_path):
    fifo = tmp_path / "key"
    os.mkfifo(fifo)  # reading it waits
    process = subprocess.Popen(
        [sys.executable, "-m", "kolm_build", "key", "show", str(fifo)],
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        # A writer that opens means the program waits in its own code by now.
        with fifo.open("wb"):
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 143
        assert process.stderr.read().startswith(b"terminated: nothing is lost")
    finally:
        process.kill()
        process.stderr.close()


def test_text_that_no_terminal_can_show_does_not_end_the_program():
    answer = kolm_process("ä\udcff", PYTHONIOENCODING="ascii")
    assert answer.status == 2
    assert "there is no command" in answer.err
