"""Time the start of a step in the sandbox against the same step as a bare process, in one run.

    python tools/bench_sandbox.py [--rounds 40]

The step does nothing. Bare and sandboxed ones take turns, with the same interpreter and variables.
The bare one has -S besides: it would else read the .pth files of the interpreter's distributions,
which the sandbox hides; so the sandbox's cost is rather more than less than told. The figures are
medians of the differences and ratios of pairs. Processor time is that of all processes, those of
bubblewrap among them. Then what the filter costs a system call, and a look the engine.
"""

import argparse
import os
import resource
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kolm_build.engine import sandbox  # noqa: E402
from kolm_build.engine.cpu import read_cpuinfo  # noqa: E402
from kolm_build.engine.limits import Guard, Limits  # noqa: E402
from kolm_build.engine.probe import probe_interpreter, probe_memory_bytes  # noqa: E402
from kolm_build.engine.process import Launch, Log, Stop, run_process  # noqa: E402
from kolm_build.engine.room import Room  # noqa: E402
from kolm_build.engine.seccomp import step_filter  # noqa: E402

CALLS = 200_000
TARGET_MS = 50
MANY_CALLS = f"""
import os, time
start = time.process_time_ns()
for _ in range({CALLS}):
    os.getppid()
print(time.process_time_ns() - start)
"""


def run(launch: Launch) -> tuple[float, float, bytes]:
    """Wall and processor milliseconds of one process, and what it printed."""
    log = Log()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = perf_counter()
    ended = run_process(launch, log=log, stop=Stop(), on_event=lambda _event: None)
    wall = perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.status:
        sys.exit(log.bytes().decode())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall * 1000, cpu * 1000, log.bytes()


def bare(room: Room) -> Launch:
    """The step without a sandbox."""
    python, *rest = sandbox.step_command(str(probe_interpreter().binary), room)
    variables = sandbox.step_variables(room=room, threads=1, network=None, environment=[])
    return Launch(command=(python, "-S", *rest), variables=variables)


def bare_in(folder: Path) -> Launch:
    """The step that does nothing, without a sandbox, in a new `folder`."""
    return bare(made(folder, ""))


def sandboxed(folder: Path, script: str, *, bwrap: Path) -> Launch:
    """The step in a room of its own, made ready as the builder does."""
    room = made(folder, script)
    sandbox.prepare_room(room, cpuinfo=read_cpuinfo(), threads=1)
    limits = Limits(memory_bytes=probe_memory_bytes())
    allowance = limits.at(room.build)
    arguments = sandbox.sandbox_arguments(
        sandbox.Mounts(room=room, interpreter=probe_interpreter()),
        threads=1,
        allowance=allowance,
        shared_bytes=limits.shared_bytes,
    )
    return Launch(
        command=(str(bwrap), *arguments),
        variables={},
        syscall_filter=step_filter(machine=os.uname().machine, network=False),
        look=Guard(allowance, (room.out, room.build), step="bench").look,
    )


def made(folder: Path, script: str) -> Room:
    folder.mkdir()
    room = Room.below(folder)
    for place in (room.room, room.room / "code", room.room / "in", room.out, room.build):
        place.mkdir()
    (room.room / "code" / "step.py").write_text(script)
    (room.room / "request").touch()
    return room


def timed(act: Callable[[], Launch]) -> tuple[float, float]:
    """Milliseconds from before the room is made to the process's end, and of processor time."""
    started = perf_counter()
    launch = act()
    ready = (perf_counter() - started) * 1000
    wall, cpu, _ = run(launch)
    return ready + wall, ready + cpu


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    found = sandbox.find_sandbox()
    print(f"{found.version}, Linux {os.uname().release}, {rounds} pairs, medians")
    with TemporaryDirectory() as place:
        top = Path(place)
        plain, boxed = [], []
        for at in range(rounds + 2):
            plain.append(timed(partial(bare_in, top / f"plain-{at}")))
            boxed.append(timed(partial(sandboxed, top / f"boxed-{at}", "", bwrap=found.bwrap)))
        plain, boxed = plain[2:], boxed[2:]  # the first ones warm up
        for name, which in (("wall", 0), ("processor", 1)):
            one = statistics.median(pair[which] for pair in plain)
            both = list(zip(plain, boxed, strict=True))
            more = statistics.median(b[which] - a[which] for a, b in both)
            ratio = statistics.median(b[which] / a[which] for a, b in both)
            print(f"{name:<10} bare {one:6.1f} ms   sandbox +{more:5.1f} ms   ratio {ratio:.2f}")
            if which == 0:
                verdict = "met" if more <= TARGET_MS else "MISSED"
                print(f"           target: at most +{TARGET_MS} ms: {verdict}")
        calls(top, found.bwrap)
        looks(top)
    return 0


def calls(top: Path, bwrap: Path) -> None:
    """What a system call costs, bare and through the filter."""
    outside, inside = [], []
    for at in range(5):
        outside.append(int(run(bare(made(top / f"calls-{at}", MANY_CALLS)))[2]))
        launch = sandboxed(top / f"filtered-{at}", MANY_CALLS, bwrap=bwrap)
        inside.append(int(run(launch)[2]))
    one, two = (statistics.median(some) / CALLS for some in (outside, inside))
    print(f"getppid    bare {one:6.0f} ns   sandbox {two:6.0f} ns   ratio {two / one:.2f}")


def looks(top: Path) -> None:
    """What one look costs the engine, at itself, with a scratch of a thousand files."""
    room = made(top / "looked-at", "")
    for number in range(1000):
        (room.build / str(number)).touch()
    allowance = Limits(memory_bytes=1 << 50, processes=1 << 30).at(room.build)
    guard = Guard(allowance, (room.out, room.build), step="bench")
    times = []
    for _ in range(20):
        started = perf_counter()
        guard.look(os.getpid())
        times.append(perf_counter() - started)
    many = sum(entry.name.isdigit() for entry in Path("/proc").iterdir())
    print(f"a look     {statistics.median(times) * 1000:.1f} ms ({many} processes, 1,000 files)")


if __name__ == "__main__":
    sys.exit(main())
