"""What a builder does with steps that misbehave."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from threading import Thread
from time import monotonic, sleep

import pytest

from kolm_build.core.digest import Digest
from kolm_build.core.numerics import Platform
from kolm_build.engine.builder import SandboxBuilder, UnsafeOpenBuilder
from kolm_build.engine.events import LogLine, Metric, Progress, Started
from kolm_build.engine.joblog import failure_of, log_of
from kolm_build.engine.process import LOG_HEAD_BYTES, LOG_TAIL_BYTES, Log, StoppedError
from kolm_build.engine.sandbox import Surroundings
from kolm_build.errors import (
    GateFailedError,
    InvalidDataError,
    InvalidRecordError,
    KolmError,
    MachineMismatchError,
    MissingObjectError,
    NetworkError,
    NoSpaceError,
    StepFailedError,
    StepKilledError,
    WrongContentError,
)
from tests.engine.steps import SHAPES, code, derivation, folder


def build(store, builder, tmp_path: Path, body: str, on_event=lambda _event: None, **parts):
    drv = derivation(code(store, tmp_path, body), **parts)
    return builder.build(drv, drv, on_event)


def failure(store, builder, tmp_path: Path, body: str, **parts) -> KolmError:
    with pytest.raises(KolmError) as caught:
        build(store, builder, tmp_path, body, **parts)
    return caught.value


def test_a_steps_events_arrive_typed(store, builder, tmp_path):
    """PROTO-3. Events MUST be JSON lines on the descriptor that the request names."""
    body = """
    say(event="progress", done=1, total=2, unit="step", loss="0.41")
    say(event="log", text="hello")
    say(event="metric", name="accuracy", value="0.5")
    say(event="progress", done="1")
    os.write(request["events_fd"], b"no JSON\\n")
    say(event="unknown")
    """
    seen = []
    made = build(store, builder, tmp_path, body, seen.append)
    assert seen[1:] == [
        Progress(node="node", done=1, total=2, unit="step", loss="0.41"),
        LogLine(node="node", text="hello"),
        Metric(node="node", name="accuracy", value="0.5"),
    ]
    assert isinstance(seen[0], Started)
    log = store.read_log(Digest.parse(made.circumstances["log"]))
    assert b"hello\n" in log
    assert b"not an event: no JSON" in log


def test_a_step_is_started_by_the_protocol(store, builder, tmp_path):
    """PROTO-1. The engine MUST start `PYTHON -s -P -B <code>/step.py <request>`.

    PROTO-2. The request MUST be canonical CBOR of these members; read here by another reader.
    """
    body = """
    put("text", json.dumps({
        "flags": [sys.flags.no_user_site, sys.flags.safe_path, sys.dont_write_bytecode],
        "argv": sys.argv, "request": request, "empty": os.listdir(out) + sys.stdin.readlines(),
    }))
    """
    made = build(store, builder, tmp_path, body, params={"a": 1, "b": "x"}, threads=2)
    node = dict(store.tree(made.contents["out"]).entries)["text"]
    assert json.loads(store.read_blob(node.b3)) == {
        "flags": [1, True, True],
        "argv": ["/kolm/code/step.py", "/kolm/request"],
        "request": {
            "v": 1,
            "step": "test",
            "params": {"a": 1, "b": "x"},
            "inputs": {},
            "outputs": {"out": "/kolm/out/out"},
            "scratch": "/build",
            "numerics": {"class": "exact-1", "seed": 0, "threads": 2},
            "events_fd": 3,
        },
        "empty": [],
    }


def test_what_a_step_prints_is_kept_with_the_result(store, builder, tmp_path):
    body = "print('to stdout'); print('to stderr', file=sys.stderr)"
    made = build(store, builder, tmp_path, body)
    log = store.read_log(Digest.parse(made.circumstances["log"]))
    assert sorted(log.splitlines()) == [b"to stderr", b"to stdout"]
    assert made.circumstances["peak_bytes"] > 1 << 20


def test_a_refusal_is_the_error_that_its_code_names(store, builder, tmp_path):
    """PROTO-5. Exit status 10 after an error event MUST become the error of that code."""
    body = """
    say(event="error", code="input.data", reason="row is empty", file="rows.jsonl", where="row 7",
        expected="text", actual="nothing", advice="Remove it.")
    sys.exit(10)
    """
    error = failure(store, builder, tmp_path, body)
    assert type(error) is InvalidDataError
    assert (error.reason, error.file, error.where) == ("row is empty", "rows.jsonl", "row 7")
    assert (error.expected, error.actual, error.advice) == ("text", "nothing", "Remove it.")


def test_a_failed_gate_is_a_gate_error(store, builder, tmp_path):
    body = "say(event='error', code='gate.failed', reason='K 0.7 < 0.85'); sys.exit(10)"
    assert isinstance(failure(store, builder, tmp_path, body), GateFailedError)


@pytest.mark.parametrize(
    "body", ["sys.exit(10)", "say(event='error', code='no.such', reason='x'); sys.exit(10)"]
)
def test_a_refusal_that_says_too_little_is_a_failed_step(store, builder, tmp_path, body):
    assert type(failure(store, builder, tmp_path, body)) is StepFailedError


def test_a_crash_shows_its_last_line_and_keeps_its_log(store, builder, tmp_path):
    """PROTO-6. Any other status MUST be a failed step, its log kept."""
    drv = derivation(code(store, tmp_path, "raise ValueError('the reason')"))
    with pytest.raises(StepFailedError) as caught:
        builder.build(drv, drv, lambda _event: None)
    assert caught.value.actual == "ValueError: the reason"
    assert "status 1" in caught.value.reason
    assert b"Traceback" in log_of(store, drv.resolved_digest, "out")


def test_a_step_that_is_killed_says_by_what_and_how_much_it_used(store, builder, tmp_path):
    """PROTO-7. A step killed by SIGKILL MUST be told from one that failed."""
    body = "block = bytearray(60 << 20); os.kill(os.getpid(), 9)"
    error = failure(store, builder, tmp_path, body)
    assert isinstance(error, StepKilledError)
    assert "SIGKILL" in error.reason
    assert "memory" in error.reason
    # Not less than this process had: the kernel counts from before the program is loaded.
    assert re.match(
        r"its largest process used (\d+ MiB|\d+\.\d\d GiB) of the machine's ", error.actual
    )


def test_a_crash_by_signal_names_the_signal(store, builder, tmp_path):
    error = failure(store, builder, tmp_path, "os.kill(os.getpid(), 11)")
    assert "SIGSEGV" in error.reason


def test_a_step_killed_in_the_open_is_told_too(store, tmp_path):
    builder = UnsafeOpenBuilder(store=store, steps=SHAPES, environments=lambda _: Surroundings())
    error = failure(store, builder, tmp_path, "os.kill(os.getpid(), 9)")
    assert isinstance(error, StepKilledError)


def test_a_full_disk_in_a_step_is_told_apart(store, builder, tmp_path):
    body = "say(event='error', code='machine.no-space', reason='full'); sys.exit(10)"
    assert isinstance(failure(store, builder, tmp_path, body), NoSpaceError)


def test_a_full_disk_of_the_engine_is_told_apart(store, builder, tmp_path, monkeypatch):
    def full(*_args: object, **_names: object) -> None:
        raise OSError(28, "No space left on device", "/somewhere")

    monkeypatch.setattr("kolm_build.engine.room.Room.furnish", full)
    error = failure(store, builder, tmp_path, "pass")
    assert isinstance(error, NoSpaceError)
    assert error.file == "/somewhere"


def test_a_huge_log_keeps_its_start_and_its_end(store, builder, tmp_path):
    """PROTO-8. The log MUST be bounded; its start and its end are kept."""
    body = """
    print("start")
    for number in range(200):
        sys.stdout.write("x" * (1 << 16) + "\\n")
    print("end")
    """
    made = build(store, builder, tmp_path, body)
    log = store.read_log(Digest.parse(made.circumstances["log"]))
    assert log.startswith(b"start\n")
    assert log.endswith(b"end\n")
    assert b"bytes left out" in log
    assert len(log) < LOG_HEAD_BYTES + LOG_TAIL_BYTES + (1 << 17)


def test_an_endless_event_is_dropped(store, builder, tmp_path):
    """PROTO-4. A line that is no event MUST do no harm."""
    body = """
    for _ in range(40):
        os.write(request["events_fd"], b"x" * (1 << 16))
    os.write(request["events_fd"], b"\\n")
    say(event="log", text="after")
    """
    seen = []
    build(store, builder, tmp_path, body, seen.append)
    assert LogLine(node="node", text="after") in seen


def test_secrets_are_starred_in_the_log():
    log = Log()
    log.write(b"token hf_0123456789 used")
    assert log.bytes(["hf_0123456789"]) == b"token *** used"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("os.mkfifo(out + '/pipe')", "special file"),
        ("os.symlink('/etc/passwd', out + '/link')", "leads out"),
        ("os.mkdir(out + '/a'); os.symlink('../../x', out + '/a/link')", "leads out"),
        ("os.mkdir('/kolm/out/more')", "other outputs"),
        ("os.rmdir(out)", "other outputs"),
        ("os.rmdir(out); os.symlink('/etc', out)", "not a folder"),
        ("os.rmdir(out); open(out, 'w').close()", "not a folder"),
        ("put('A', ''); put('a', '')", "no tree may hold"),
        ("open(out.encode() + b'/\\xff', 'w').close()", "no tree may hold"),
    ],
)
def test_an_output_that_no_tree_may_hold_is_refused(store, builder, tmp_path, body, said):
    """PROTO-9. An output MUST hold files, folders and links inside it only."""
    error = failure(store, builder, tmp_path, body)
    assert type(error) is StepFailedError
    assert said in f"{error.reason} {error.actual}"


def test_modes_are_normalised(store, builder, tmp_path):
    """PROTO-10. Of a file's mode only whether its owner may execute it MUST count."""
    body = """
    put("text", "hello"); os.chmod(out + "/text", 0o000)
    os.mkdir(out + "/folder", 0o700); put("folder/run", ""); os.chmod(out + "/folder/run", 0o4711)
    os.chmod(out + "/folder", 0o500)
    """
    made = build(store, builder, tmp_path, body)
    again = """
    put("text", "hello"); os.mkdir(out + "/folder")
    put("folder/run", ""); os.chmod(out + "/folder/run", 0o755)
    """
    assert build(store, builder, tmp_path, again).contents == made.contents


def test_a_fixed_output_with_other_content_is_refused_and_kept(store, builder, tmp_path):
    """PROTO-11. A fixed output with another digest MUST be refused, naming both."""
    expected = folder(store, tmp_path, {"text": "expected"})
    error = failure(
        store, builder, tmp_path, "put('text', 'other')", step="net", outputs={"out": expected}
    )
    assert isinstance(error, WrongContentError)
    assert error.expected == str(expected)
    assert store.has_tree(Digest.parse(error.actual))
    assert error.where == "node.out"


def test_the_network_needs_a_fixed_output(store, builder, tmp_path):
    """PROTO-12. A step with the network MUST have its outputs fixed, but while locking."""
    error = failure(store, builder, tmp_path, "put('text', '')", step="net")
    assert isinstance(error, InvalidRecordError)
    locking = SandboxBuilder(
        store=store, steps=SHAPES, environments=lambda _: Surroundings(), unpinned_network=True
    )
    assert build(store, locking, tmp_path, "put('text', '')", step="net").fetched


def test_offline_refuses_the_network(store, tmp_path):
    builder = SandboxBuilder(
        store=store, steps=SHAPES, environments=lambda _: Surroundings(), offline=True
    )
    expected = folder(store, tmp_path, {"text": "expected"})
    error = failure(store, builder, tmp_path, "", step="net", outputs={"out": expected})
    assert isinstance(error, NetworkError)


def test_another_kind_of_machine_is_refused(store, builder, tmp_path):
    from dataclasses import replace

    from kolm_build.core.numerics import Numerics

    drv = replace(
        derivation(code(store, tmp_path, "")),
        numerics=Numerics(cls="native-1"),
        platform=Platform(isa="x86_64-v9", vendor="nobody"),
    )
    with pytest.raises(MachineMismatchError) as caught:
        builder.build(drv, drv, lambda _event: None)
    assert caught.value.expected == "x86_64-v9/nobody/none"


def test_a_missing_input_is_named(store, builder, tmp_path):
    absent = Digest.of_blob(b"absent")
    error = failure(store, builder, tmp_path, "", inputs={"data": absent})
    assert isinstance(error, MissingObjectError)


def test_a_failed_tree_is_kept_on_request(store, tmp_path):
    kept = []
    builder = SandboxBuilder(
        store=store,
        steps=SHAPES,
        environments=lambda _: Surroundings(),
        keep_failed=lambda drv, tree: kept.append((drv.name, tree)),
    )
    drv = derivation(code(store, tmp_path, "put('half', 'done'); sys.exit(1)"))
    with pytest.raises(StepFailedError):
        builder.build(drv, drv, lambda _event: None)
    [(name, tree)] = kept
    assert name == "node"
    assert failure_of(store, drv.resolved_digest)["tree"] == tree
    assert [name for name, _ in store.tree(tree).entries] == ["out"]


@pytest.mark.parametrize("kind", [SandboxBuilder, UnsafeOpenBuilder])
def test_stopping_ends_the_step_and_all_it_started(store, tmp_path, kind):
    """PROTO-13. When the build stops, nothing of a step MUST be left running."""
    builder = kind(store=store, steps=SHAPES, environments=lambda _: Surroundings())
    marker = f"kolm-test-{os.getpid()}-{kind.__name__}"
    body = f"""
    import subprocess, time
    subprocess.Popen(["/bin/sh", "-c", "sleep 600; : {marker}"])
    say(event="log", text="ready")
    time.sleep(600)
    """
    caught: list[BaseException] = []
    ready: list[object] = []

    def work() -> None:
        try:
            build(store, builder, tmp_path, body, ready.append)
        except BaseException as error:
            caught.append(error)

    thread = Thread(target=work)
    thread.start()
    deadline = monotonic() + 20
    while len(ready) < 2 and monotonic() < deadline:
        sleep(0.01)
    builder.stop()
    thread.join(10)
    assert [type(error) for error in caught] == [StoppedError]
    sleep(0.05)
    assert not running(marker)
    with pytest.raises(StoppedError):
        build(store, builder, tmp_path, "pass")


def running(marker: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                line = (entry / "cmdline").read_bytes()
                stat = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if marker.encode() in line and stat != "Z":
                found.append(line.decode())
    return found
