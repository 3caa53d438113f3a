import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kolm_build.core.request import EXIT_OK
from kolm_build.errors import GateFailedError, InvalidRecordError, UsageError
from kolm_build.steps import table
from kolm_build.steps._entry import Events, run_step
from tests.steps_data import calling

ROOT = Path(__file__).parents[2]


def ran(tmp_path, run):
    module = SimpleNamespace(__name__="busy", main=lambda argv: run_step(argv, run))
    return calling.run_step(module, tmp_path)


def test_a_step_that_ends_well_has_status_0(tmp_path):
    assert ran(tmp_path, lambda request, events: events.log("hello")).status == EXIT_OK


def test_a_refusal_is_one_error_event_and_its_own_status(tmp_path):
    """STEP-4."""

    def run(request, events):
        raise GateFailedError("too low", where="K", expected="0.8500", actual="0.7000")

    assert ran(tmp_path, run).refusal == {
        "event": "error",
        "code": "gate.failed",
        "reason": "too low",
        "where": "K",
        "expected": "0.8500",
        "actual": "0.7000",
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/out/x"), "machine.no-space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "machine.no-space"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "machine.permission"),
        (MemoryError("Unable to allocate 9 GiB"), "machine.error"),
    ],
)
def test_trouble_of_the_machine_is_told_as_such(tmp_path, error, code):
    """STEP-5."""

    def run(request, events):
        raise error

    assert ran(tmp_path, run).refusal["code"] == code


def test_a_mistake_of_the_step_is_a_crash_and_not_a_refusal(tmp_path):
    def run(request, events):
        raise FileNotFoundError(errno.ENOENT, "No such file", "/x")

    with pytest.raises(FileNotFoundError):
        ran(tmp_path, run)


def test_progress_and_metrics_are_json_lines(tmp_path):
    def run(request, events):
        events.progress(1, 200, unit="step", loss="0.41")
        events.bytes_progress(5, 0)
        events.metric("accuracy", "0.7100")

    assert ran(tmp_path, run).events == [
        {"event": "progress", "done": 1, "total": 200, "unit": "step", "loss": "0.41"},
        {"event": "progress", "done": 5, "total": 0, "unit": "byte"},
        {"event": "metric", "name": "accuracy", "value": "0.7100"},
    ]


def test_a_long_line_passes_a_pipe_whole(tmp_path):
    reader, writer = os.pipe()
    with (tmp_path / "got").open("wb") as got, subprocess.Popen(["cat"], stdin=reader, stdout=got):
        os.close(reader)
        Events(writer).log("x" * 300_000)
        os.close(writer)
    assert len(json.loads((tmp_path / "got").read_bytes())["text"]) == 300_000


def test_a_bad_request_is_no_event_because_there_is_no_descriptor(tmp_path):
    (tmp_path / "request").write_bytes(b"\xa0")
    with pytest.raises(InvalidRecordError):
        run_step(["step.py", str(tmp_path / "request")], lambda request, events: None)
    with pytest.raises(UsageError):
        run_step(["step.py"], lambda request, events: None)


def test_every_step_of_the_table_is_a_module_with_a_main():
    """STEP-1."""
    for spec in table.STEPS.values():
        place = spec.module.replace(".", "/")
        text = (ROOT / "kolm_build" / "steps" / f"{place}.py").read_text("utf-8")
        assert "def main(argv: list[str]) -> int:" in text


def test_only_fetch_has_a_network():
    """STEP-2."""
    assert [name for name, spec in table.STEPS.items() if spec.network] == ["fetch"]


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        table.STEPS["busy"] = table.STEPS["fetch"]


@pytest.mark.parametrize(
    "module", [spec.module for spec in table.STEPS.values() if not spec.environment]
)
def test_a_step_without_an_environment_imports_the_standard_library_alone(module):
    """STEP-3."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import kolm_build.steps.{module}; "
        "print([m for m in ('blake3', 'numpy', 'torch', 'cryptography') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout == "[]\n", done.stderr
