"""What a step may take, and what is said when it takes more."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.engine import limits
from kolm_build.engine.builder import SandboxBuilder
from kolm_build.engine.failure import over_limit
from kolm_build.engine.limits import (
    SET_LIMITS,
    Allowance,
    DiskLimitError,
    Guard,
    Limits,
    MemoryLimitError,
    ProcessLimitError,
    Usage,
    descendants,
    parse_stat,
    processes_here,
)
from kolm_build.engine.probe import default_memory_bytes, probe_memory_bytes
from kolm_build.engine.process import Ended
from kolm_build.engine.sandbox import Surroundings
from kolm_build.errors import (
    Exit,
    KolmError,
    NoSpaceError,
    StepFailedError,
    StepKilledError,
    UsageError,
)
from kolm_build.surfaces.building import Options, make_builder
from kolm_build.surfaces.cli.options import size_bytes
from tests.engine.hostile import MARK, SMALL, left_behind
from tests.engine.steps import SHAPES, code, derivation

ALLOWANCE = Allowance(memory_bytes=1 << 30, written_bytes=1 << 30, processes=1000, open_files=64)


def failure(store, tmp_path: Path, body: str, limits_: Limits = SMALL) -> KolmError:
    builder = SandboxBuilder(
        store=store, steps=SHAPES, environments=lambda _: Surroundings(), limits=limits_
    )
    drv = derivation(code(store, tmp_path, body))
    with pytest.raises(KolmError) as caught:
        builder.build(drv, drv, lambda _event: None)
    return caught.value


def ended(status: int, exceeded: KolmError | None = None) -> Ended:
    return Ended(status=status, error=None, exceeded=exceeded, wall_ms=1, cpu_ms=1, peak_bytes=1)


def test_memory_that_ran_out_names_the_limit(store, tmp_path):
    """BOX-20. A step over its memory limit MUST end with `build.memory-limit`."""
    error = failure(store, tmp_path, "block = bytearray(1 << 30)")
    assert isinstance(error, MemoryLimitError)
    assert "killed: memory limit" in error.reason
    assert error.expected == "at most 256 MiB"
    assert error.actual == "MemoryError"
    assert error.exit == Exit.BUILD | Exit.MACHINE


@pytest.mark.parametrize("mib", [1, 2, 3, 4, 5])
def test_a_step_that_had_too_little_memory_to_start_is_told_so(store, tmp_path, mib):
    """BOX-20: by the loader, or by Python before it has a frame."""
    little = Limits(memory_bytes=mib << 20)
    error = failure(store, tmp_path, "block = bytearray(1 << 30)", little)
    assert isinstance(error, MemoryLimitError)
    assert error.expected == f"at most {mib} MiB"
    assert error.advice == (
        "Raise `--step-memory`: a step takes 64M at least, one with a model 1G and more."
    )


def test_a_step_that_had_much_memory_is_told_how_to_need_less():
    """BOX-20."""
    log = b"MemoryError"
    error = over_limit(ended(1), log, step="x", allowance=ALLOWANCE)
    assert error.expected == "at most 1.00 GiB"
    assert error.advice == "Raise `--step-memory`, or lower `batch_size` or `max_length`."


def test_memory_of_many_processes_is_one_sum(store, tmp_path):
    body = """
    import time
    for _ in range(4):
        if os.fork() == 0:
            block = os.urandom(100 << 20)
            time.sleep(60)
    time.sleep(60)
    """
    error = failure(store, tmp_path, body)
    assert isinstance(error, MemoryLimitError)
    assert error.actual.startswith("used ")
    assert error.actual.endswith(" MiB")


def test_memory_that_processes_share_is_counted_once(store, builder, tmp_path):
    """So that workers that were forked from a large process are no reason to end it."""
    body = """
    import time
    block = os.urandom(150 << 20)
    for _ in range(4):
        if os.fork() == 0:
            time.sleep(60)
    time.sleep(1.5)
    put("text", "kept")
    """
    tight = SandboxBuilder(
        store=store, steps=SHAPES, environments=lambda _: Surroundings(), limits=SMALL
    )
    drv = derivation(code(store, tmp_path, body))
    assert tight.build(drv, drv, lambda _event: None).contents


def test_a_disk_that_is_over_its_limit_names_it(store, tmp_path):
    """BOX-21. A step over its disk limit MUST end with `build.disk-limit`."""
    body = """
    import time
    for number in range(64):
        open(f"/build/{number}", "wb").write(os.urandom(1 << 20))
    time.sleep(60)
    """
    error = failure(store, tmp_path, body)
    assert isinstance(error, DiskLimitError)
    assert "disk limit" in error.reason
    assert error.expected == "at most 32 MiB in its outputs and scratch"


def test_one_file_over_the_disk_limit_is_told_as_the_kernel_told_it(store, tmp_path):
    """A hole holds no bytes, so that only the kernel can say it, not who looks at the sum."""
    one = failure(store, tmp_path, "open('/build/x', 'wb').truncate(64 << 20)")
    assert isinstance(one, DiskLimitError)
    assert "File too large" in one.actual


def test_holes_are_not_written(store, builder, tmp_path):
    tight = SandboxBuilder(
        store=store, steps=SHAPES, environments=lambda _: Surroundings(), limits=SMALL
    )
    body = """
    import time
    for number in range(8):
        with open(f"/build/{number}", "wb") as file:
            file.truncate(30 << 20)
    time.sleep(0.7)
    put("text", "kept")
    """
    drv = derivation(code(store, tmp_path, body))
    assert tight.build(drv, drv, lambda _event: None).contents


def test_the_last_of_the_disk_is_left_alone(tmp_path, monkeypatch):
    guard = Guard(ALLOWANCE, (tmp_path,), step="x")
    assert guard.look(os.getpid()) is None
    monkeypatch.setattr(limits, "_free_bytes", lambda _folder: limits.RESERVE_BYTES - 1)
    assert isinstance(guard.look(os.getpid()), NoSpaceError)
    # Where there was no more when it began, it is not the step's doing.
    assert Guard(ALLOWANCE, (tmp_path,), step="x").look(os.getpid()) is None


def test_processes_and_threads_are_counted(store, tmp_path):
    """BOX-22. A step MUST NOT have more processes and threads than its limit."""
    body = """
    import threading, time
    for _ in range(100):
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
    time.sleep(30)
    """
    error = failure(store, tmp_path, body, Limits(memory_bytes=4 << 30, processes=64))
    assert isinstance(error, ProcessLimitError)
    assert "process limit" in error.reason
    assert error.expected == "at most 64 processes and threads"


def test_limits_are_those_of_the_kernel(store, tmp_path):
    """BOX-23. A step MUST leave no core and MUST NOT raise a limit."""
    body = """
    import resource
    kinds = ("CORE", "DATA", "FSIZE", "NOFILE", "NPROC")
    put("text", json.dumps([resource.getrlimit(getattr(resource, "RLIMIT_" + k)) for k in kinds]))
    """
    builder = SandboxBuilder(
        store=store, steps=SHAPES, environments=lambda _: Surroundings(), limits=SMALL
    )
    drv = derivation(code(store, tmp_path, body))
    made = builder.build(drv, drv, lambda _event: None)
    text = store.read_blob(dict(store.tree(made.contents["out"]).entries)["text"].b3)
    wanted = [0, SMALL.memory_bytes, SMALL.written_bytes, SMALL.open_files, SMALL.processes]
    assert text.decode() == str([[number, number] for number in wanted])


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_without_its_limits_nothing_runs(shell):
    """BOX-23. Where a limit cannot be set nothing MUST run."""
    script = f'{SET_LIMITS}; echo ran "$@"'
    for numbers, status, said in (
        (["64", "2000", "4000000", "5000"], 0, "ran x\n"),
        (["64", "2000", "nonsense", "5000"], 126, ""),
    ):
        done = subprocess.run(
            [shell, "-c", script, "sh", *numbers, "x"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (status, said)


def test_a_step_that_ends_leaves_no_process(store, builder, tmp_path):
    """BOX-24. Of a step that ended, however it ended, no process MUST be left."""
    start = f"""
    import subprocess, time
    code = "import time, signal; signal.pthread_sigmask(0, range(1, 32)); time.sleep(600) # {MARK}"
    for _ in range(20):
        subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    """
    for end in (
        "put('text', '')",
        "sys.exit(3)",
        "os.kill(os.getpid(), 9)",
        "blocks = bytearray(1 << 40)",
    ):
        drv = derivation(code(store, tmp_path, start + "\n    " + end))
        with suppress(KolmError):
            builder.build(drv, drv, lambda _event: None)
        assert left_behind() == []


def test_a_step_that_is_killed_for_a_limit_leaves_no_process(store, tmp_path):
    body = f"""
    import subprocess, time
    for _ in range(100):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600) # {MARK}"])
    time.sleep(60)
    """
    error = failure(store, tmp_path, body)
    assert isinstance(error, ProcessLimitError | StepFailedError)
    assert left_behind() == []


def test_a_limit_is_never_above_the_users_own(tmp_path):
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowance = Limits(memory_bytes=1 << 40, open_files=hard + 1000).at(tmp_path)
    assert allowance.open_files == hard


def test_a_step_may_write_half_of_what_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "_free_bytes", lambda _folder: 10 << 30)
    assert Limits(memory_bytes=1 << 30).at(tmp_path).written_bytes == 5 << 30
    assert Limits(memory_bytes=1 << 30, written_bytes=7).at(tmp_path).written_bytes == 7


@pytest.mark.parametrize(
    ("status", "log", "kind"),
    [
        (1, b"MemoryError", MemoryLimitError),
        (
            1,
            b"numpy._core._exceptions._ArrayMemoryError: Unable to allocate 9 GiB",
            MemoryLimitError,
        ),
        (
            1,
            b"RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried",
            MemoryLimitError,
        ),
        (
            134,
            b"Fatal Python error: Cannot recover from MemoryErrors\n  File x\n\nAborted",
            MemoryLimitError,
        ),
        (
            134,
            b"terminate called after an instance of 'std::bad_alloc'\n\nAborted",
            MemoryLimitError,
        ),
        (134, b"terminate called\n  what():  std::bad_alloc", MemoryLimitError),
        (1, b"OSError: [Errno 12] Cannot allocate memory", MemoryLimitError),
        (
            1,
            b"Fatal Python error: _PySys_InitCore: can't initialize sys module\nMemoryError\n\n"
            b"Current thread 0x1 (most recent call first):\n  <no Python frame>\n",
            MemoryLimitError,
        ),
        (
            1,
            b"object type name: MemoryError\nobject repr     : MemoryError()\nlost sys.stderr\n",
            MemoryLimitError,
        ),
        (
            127,
            b"python: error while loading shared libraries: libpython3.11.so.1.0:"
            b" cannot map zero-fill pages",
            MemoryLimitError,
        ),
        (
            1,
            b"OpenBLAS error: Memory allocation still failed after 10 retries, giving up.",
            MemoryLimitError,
        ),
        (1, b"OSError: [Errno 27] File too large: '/build/x'", DiskLimitError),
        (153, b"", DiskLimitError),
        (1, b"RuntimeError: can't start new thread", ProcessLimitError),
        (1, b"BlockingIOError: [Errno 11] Resource temporarily unavailable", ProcessLimitError),
    ],
)
def test_what_the_kernel_refused_is_told_by_the_last_words(status, log, kind):
    assert type(over_limit(ended(status), log, step="x", allowance=ALLOWANCE)) is kind


@pytest.mark.parametrize(
    ("status", "log"),
    [
        (0, b"MemoryError"),
        (10, b"MemoryError"),
        (1, b"ValueError: no MemoryError"),
        (139, b""),
        (1, b"MemoryError\nx"),
        (1, b"Fatal Python error: init_fs_encoding: x\n\n  <no Python frame>\n"),
    ],
)
def test_other_ends_are_no_limits(status, log):
    assert over_limit(ended(status), log, step="x", allowance=ALLOWANCE) is None


def test_in_the_open_there_are_no_limits_to_name():
    assert over_limit(ended(1), b"MemoryError", step="x", allowance=None) is None


def test_what_ended_a_step_is_said_whatever_its_status():
    error = StepKilledError("killed")
    assert over_limit(ended(0, error), b"", step="x", allowance=ALLOWANCE) is error


def test_a_process_may_have_any_name():
    text = b"7 (a) S 9 (x) ) R 42 0 0 0 0 0 0 0 0 0 0 0 0 0 20 0 3 0 5 6 11 0"
    # The last bracket ends the name: "a) S 9 (x) ".
    assert parse_stat(text) == Usage(42, 3, 11 * os.sysconf("SC_PAGE_SIZE"))


def test_this_process_is_seen():
    mine = processes_here()[os.getpid()]
    assert mine.parent == os.getppid()
    assert mine.resident_bytes > 1 << 20


@given(st.dictionaries(st.integers(1, 50), st.integers(0, 50), max_size=40), st.integers(1, 50))
def test_descendants_are_those_whose_line_leads_back(parents, top):
    processes = {pid: Usage(parent, 1, 0) for pid, parent in parents.items() if parent < pid}

    def leads_back(pid: int) -> bool:
        while pid in processes:
            if pid == top:
                return True
            pid = processes[pid].parent
        return pid == top

    found = descendants(top, processes)
    assert set(found) == {pid for pid in processes if leads_back(pid)}


def test_names_of_errors_are_stable():
    assert [kind.code for kind in (MemoryLimitError, DiskLimitError, ProcessLimitError)] == [
        "build.memory-limit", "build.disk-limit", "build.process-limit",
    ]  # fmt: skip


def test_options_set_the_limits_of_every_step(store):
    """BOX-29. `--step-memory` and `--step-disk` MUST set the limits of every step."""
    options = Options(step_memory_bytes=size_bytes("2G"), step_disk_bytes=size_bytes("512m"))
    assert (options.limits.memory_bytes, options.limits.written_bytes) == (2 << 30, 512 << 20)
    builder = make_builder(lambda _: Surroundings(), store, options=options)
    assert builder._limits == options.limits


def test_limits_without_a_sandbox_are_refused(store):
    """BOX-29. With `--sandbox=none` they MUST be refused."""
    for name in ("step_memory_bytes", "step_disk_bytes"):
        with pytest.raises(UsageError, match="need the sandbox"):
            make_builder(
                lambda _: Surroundings(), store, options=Options(sandbox="none", **{name: 1 << 30})
            )
    assert Options(sandbox="none").limits


@pytest.mark.parametrize("text", ["", "8", "G", "0G", "-1G", "1.5G", "8GB", "²G", "8 G"])
def test_a_size_needs_a_whole_number_and_a_unit(text):
    with pytest.raises(ArgumentTypeError, match="expected a size"):
        size_bytes(text)


def test_a_container_has_less_memory_than_its_machine(tmp_path):
    small, none = tmp_path / "small", tmp_path / "none"
    small.write_text(f"{1 << 30}\n")
    none.write_text("max\n")
    paths = [str(none), str(small), str(tmp_path / "missing")]
    assert default_memory_bytes(paths) == (15 << 30) // 16
    assert default_memory_bytes(paths[:1]) == probe_memory_bytes() * 15 // 16


_ENGINE = """
import sys
from pathlib import Path
from kolm_build.engine.builder import SandboxBuilder
from kolm_build.engine.sandbox import Surroundings
from kolm_build.store.local import LocalStore
from tests.engine.steps import SHAPES, code, derivation

place = Path(sys.argv[1])
with LocalStore.open(place / "store") as store:
    builder = SandboxBuilder(store=store, steps=SHAPES, environments=lambda _: Surroundings())
    drv = derivation(code(store, place, (place / "body").read_text()))
    builder.build(drv, drv, lambda _event: None)
"""


def wait_until(true: Callable[[], bool]) -> None:
    """Fail where it never comes true."""
    end = monotonic() + 60
    while not true():
        assert monotonic() < end
        sleep(0.05)


def test_an_engine_that_is_killed_leaves_no_process(tmp_path):
    """BOX-24. Of a step that ended, however it ended, no process MUST be left."""
    body = f"""
    import subprocess, time
    code = "import time; time.sleep(600)  # {MARK}"
    subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    time.sleep(600)
    """
    (tmp_path / "body").write_text(body)
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", _ENGINE, tmp_path], cwd=root) as engine:
        wait_until(lambda: bool(left_behind()))
        engine.kill()
    wait_until(lambda: not left_behind())
