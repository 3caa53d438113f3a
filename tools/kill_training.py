"""Kill a training at random moments: it goes on, and ends in the bytes of an undisturbed one.

    python tools/kill_training.py                    # 20 kills
    python tools/kill_training.py --kills 1 --steps 4 --checkpoint-steps 2

The tiny example is locked once with a stage that has dropout and `checkpoint_steps`, so that its
training is a chain of derivations, and built once undisturbed. Each round begins with a store that
holds what comes before the training, starts `kolm build`, ends kolm, its sandbox and its step at
once with SIGKILL, and runs the same command again. The moment is drawn from a seeded generator,
evenly over the time of the undisturbed training, and counted from the event before it (a part
started, an optimiser step done, a part built), so that a busier machine shifts it little.

A row is a round: the last event before the kill, and how long before it was; how many parts kolm
had said to be built; how many it did not run again; and whether everything held: nothing of the
killed build runs on, what was said to be built is kept, every checkpoint, the adapter, the trace
and the metrics have the digests of the undisturbed run, and `kolm store fsck --deep` finds nothing.
The exit status is 1 where anything did not hold, or where no kill met a training.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kolm_build.engine.limits import descendants, processes_here  # noqa: E402

EXAMPLE = ROOT / "examples" / "tiny"
NODE = "train-1"
GONE_WITHIN_S = 10.0
CHANGES = {
    "epochs = 20\n": 'max_steps = {steps}\ncheckpoint_steps = {every}\nlora_dropout = "0.1"\n',
    "warmup_steps = 10\n": "warmup_steps = 2\n",
}
"""What the recipe has in place of the example's lines."""

Event = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Project:
    """The recipe and its lock.

    Attributes:
        folder: Where they lie.
        parts: The nodes of the training, in order; the last one gives the adapter.
        outputs: What is compared, as ``node.output``.
    """

    folder: Path
    parts: tuple[str, ...]
    outputs: tuple[str, ...]

    def command(self, store: Path, *targets: str) -> list[str]:
        """The build of `targets` in `store`."""
        where = ("-C", self.folder, "--store", store)
        return list(map(str, (*KOLM, "build", "--json", "--offline", *where, *targets)))


KOLM = (sys.executable, "-m", "kolm_build")


def environment() -> dict[str, str]:
    """The variables of a kolm that has no settings but those that it is given here."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("KOLM_")}
    return kept | {"PYTHONPATH": str(ROOT)}


def run(command: Sequence[str | Path]) -> str:
    """What a command prints; a failure ends the program with what it said."""
    done = subprocess.run(
        list(map(str, command)), env=environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"exit status {done.returncode}: {' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout


def locked(folder: Path, store: Path, *, steps: int, every: int) -> Project:
    """The tiny example with a training of `steps` in parts of `every`, locked."""
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__*", "*.kolm", "*.lock"))
    recipe = (folder / "kolm.toml").read_text()
    for old, new in CHANGES.items():
        assert old in recipe, old
        recipe = recipe.replace(old, new.format(steps=steps, every=every))
    (folder / "kolm.toml").write_text(recipe)
    run((*KOLM, "lock", "-C", folder, "--store", store))
    aside = [f"{NODE}-after-{step}" for step in range(every, steps, every)]
    outputs = [f"{node}.checkpoint" for node in aside]
    outputs += [f"{NODE}.{output}" for output in ("adapter", "metrics", "trace")]
    return Project(folder=folder, parts=(*aside, NODE), outputs=tuple(outputs))


# The undisturbed run


@dataclass(frozen=True, slots=True)
class Mark:
    """An event that a moment is counted from: a part has started, made a step, or is built."""

    part: str
    event: str
    step: int

    def __str__(self) -> str:
        did = f"step {self.step}" if self.event == "progress" else self.event
        return f"{self.part} {did}"


def mark(event: Event) -> Mark | None:
    """The mark that an event is, if it is one."""
    if event["event"] not in {"started", "progress", "built"}:
        return None
    return Mark(event["node"], event["event"], event.get("done", 0))


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The undisturbed run.

    Attributes:
        digests: Of everything that is compared.
        seconds: How long it was from each mark to the next one, or to the end.
    """

    digests: Mapping[str, str]
    seconds: Mapping[Mark, float]

    def moment(self, share: float) -> tuple[Mark, float]:
        """Where `share` of the training's time lies: the mark before it, and seconds after it."""
        left = share * sum(self.seconds.values())
        for begin, took in self.seconds.items():
            if left < took:
                return begin, left
            left -= took
        return begin, took


def undisturbed(project: Project, store: Path) -> Reference:
    """Build the training in `store`, and note what it gives and how long its parts take."""
    times: dict[Mark, float] = {}
    with start(project, store) as process:
        for line in process.stdout or ():
            if found := mark(json.loads(line)):
                times[found] = time.monotonic()
    ended = time.monotonic()
    if process.returncode:
        sys.exit(f"the undisturbed build ended with exit status {process.returncode}")
    took = [after - before for before, after in pairwise([*times.values(), ended])]
    return Reference(digests=digests(project, store), seconds=dict(zip(times, took, strict=True)))


def start(project: Project, store: Path) -> subprocess.Popen[str]:
    """`kolm build` of the training, its events to be read."""
    return subprocess.Popen(
        project.command(store, NODE), env=environment(), stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def events_of(text: str) -> list[Event]:
    """The whole lines of what a build printed; the last one of a killed build may be cut short."""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def nodes(events: Sequence[Event], kind: str) -> set[str]:
    """The nodes of the events of one kind."""
    return {event["node"] for event in events if event["event"] == kind}


def digests(project: Project, store: Path) -> Mapping[str, str]:
    """What `store` holds of the training; nothing is built."""
    events = events_of(run(project.command(store, *project.outputs)))
    if again := nodes(events, "started"):
        sys.exit(f"built again after the build had ended: {', '.join(sorted(again))}")
    return dict(events[-1]["targets"])


# One round


@dataclass(frozen=True, kw_only=True)
class Round:
    """A build that was killed, and the one that went on.

    Attributes:
        last: The last mark before the kill; None where the build had ended.
        after_s: How long before it was; None where another mark came than was waited for.
        said: The parts that kolm had said to be built.
        kept: The parts that were not run again.
        left: Processes of the killed build that ran on.
        digests: What the build that went on gave.
        litter: Files that nothing names, which the collector removes.
        findings: What the check of the store found.
    """

    last: Mark | None
    after_s: float | None
    said: frozenset[str]
    kept: frozenset[str]
    left: int
    digests: Mapping[str, str]
    litter: int
    findings: int

    def trouble(self, reference: Reference) -> str:
        """What did not hold; empty where everything did."""
        differ = [
            name for name, digest in reference.digests.items() if self.digests.get(name) != digest
        ]
        lost = self.said - self.kept
        found = (
            f"differ: {', '.join(differ)}" if differ else "",
            f"lost: {', '.join(sorted(lost))}" if lost else "",
            f"{self.left} processes ran on" if self.left else "",
            f"fsck: {self.findings} findings" if self.findings else "",
        )
        return "; ".join(filter(None, found))

    @property
    def met_training(self) -> bool:
        """Whether a part of the training ran at the time."""
        return self.last is not None and self.last.event != "built"

    def row(self, number: int, reference: Reference) -> str:
        """Its row of the table."""
        last = str(self.last or "(had ended)")
        after_s = "" if self.after_s is None else f"{self.after_s:.1f}"
        return (
            f"{number:>5}  {last:<26}{after_s:>7}{len(self.said):>6}{len(self.kept):>6}"
            f"{self.litter:>8}  {self.trouble(reference) or 'the same bytes'}"
        )


HEAD = f"{'kill':>5}  {'after':<26}{'s':>7}{'said':>6}{'kept':>6}{'litter':>8}"


def killed_and_gone_on(
    project: Project, reference: Reference, inputs: Path, store: Path, share: float
) -> Round:
    """One round in `store`, which is made from the store `inputs` and deleted afterwards."""
    shutil.copytree(inputs, store, symlinks=True)
    before, last, after_s, left = killed(project, store, *reference.moment(share))
    again = events_of(run(project.command(store, NODE)))
    checked = fsck(store)
    made = Round(
        last=last,
        after_s=after_s,
        said=frozenset(nodes(before, "built")),
        kept=frozenset(project.parts) - nodes(again, "started"),
        left=left,
        digests=digests(project, store),
        litter=checked["litter"],
        findings=len(checked["findings"]),
    )
    shutil.rmtree(store)
    return made


def killed(
    project: Project, store: Path, begin: Mark, after_s: float
) -> tuple[list[Event], Mark | None, float | None, int]:
    """Start the build and kill it `after_s` after the mark `begin`.

    Returns:
        What it said; its last mark, and how long after that it was killed; how many of its
        processes were left.
    """
    process = start(project, store)
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if mark(json.loads(line)) == begin:
            break
    begun = time.monotonic()
    time.sleep(after_s)
    took_s = time.monotonic() - begun
    had_ended = process.poll() is not None
    left = kill_all(process)
    events = events_of("".join(said) + process.stdout.read())
    process.stdout.close()
    process.wait()
    last = None if had_ended else [found for event in events if (found := mark(event))][-1]
    return events, last, took_s if last == begin else None, left


def kill_all(process: subprocess.Popen[str]) -> int:
    """Kill a process and all that it started, at once; how many of them are still there."""
    family = descendants(process.pid, processes_here())
    for pid in family:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + GONE_WITHIN_S
    while (left := alive(family)) and time.monotonic() < end:
        time.sleep(0.05)
    return len(left)


def alive(family: Mapping[int, object]) -> list[int]:
    """Those of `family` that are more than an entry that nobody has looked at."""
    here = processes_here()
    return [pid for pid in family if pid in here and here[pid].resident_bytes]


def fsck(store: Path) -> Event:
    """What the check of a store says, whatever it found."""
    done = subprocess.run(
        list(map(str, (*KOLM, "store", "fsck", "--deep", "--json", "--store", store))),
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if not done.stdout:
        sys.exit(f"the store could not be checked: {done.stderr}")
    return dict(json.loads(done.stdout))


# All of them


def storm(place: Path, args: argparse.Namespace) -> int:
    """Every round; 1 where anything did not hold."""
    inputs, random = place / "inputs", Random(args.seed)
    project = locked(place / "project", inputs, steps=args.steps, every=args.checkpoint_steps)
    run(project.command(inputs, "base", "dataset"))
    shutil.copytree(inputs, place / "undisturbed", symlinks=True)
    reference = undisturbed(project, place / "undisturbed")
    for name, digest in reference.digests.items():
        print(f"{name:<30}{digest}")
    print(f"undisturbed: {sum(reference.seconds.values()):.0f} s\n{HEAD}", flush=True)
    rounds: list[Round] = []
    with ThreadPoolExecutor(args.jobs) as pool:
        pending = [
            pool.submit(killed_and_gone_on, project, reference, inputs, place / str(at), share)
            for at, share in enumerate([random.random() for _ in range(args.kills)])
        ]
        for done in as_completed(pending):
            rounds.append(done.result())
            print(rounds[-1].row(len(rounds), reference), flush=True)
    return summed_up(project, reference, rounds)


def summed_up(project: Project, reference: Reference, rounds: Sequence[Round]) -> int:
    """Print what all rounds come to; 1 where anything did not hold."""
    bad = sum(bool(one.trouble(reference)) for one in rounds)
    inside = sum(one.met_training for one in rounds)
    kept = sum(len(one.kept) for one in rounds)
    print(
        f"{len(rounds) - bad} of {len(rounds)} kills: resumed to the same bytes; "
        f"{inside} inside the training; "
        f"{kept} of {len(rounds) * len(project.parts)} parts kept and not run again"
    )
    return int(bad > 0 or not inside)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="rounds (default: 20)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default: 1)")
    parser.add_argument("--steps", type=int, default=12, help="of the optimiser (default: 12)")
    parser.add_argument("--checkpoint-steps", type=int, default=4, help="a part (default: 4)")
    parser.add_argument("--jobs", type=int, default=1, help="rounds at a time (default: 1)")
    parser.add_argument("--place", type=Path, help="where to make the stores")
    args = parser.parse_args()
    with TemporaryDirectory(dir=args.place) as folder:
        return storm(Path(folder).resolve(), args)


if __name__ == "__main__":
    sys.exit(main())
