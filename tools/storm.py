"""Try to make a store lose something: kills, kills at chosen system calls, power cuts, collectors.

Workers build small things and note each one in a journal outside the store, after the store said
that it is kept. Whatever happens to them, the store must afterwards be sound (fsck) and hold
everything that the journal names. Prints a table; the exit status is 1 if anything was lost.

    python tools/storm.py                     # 500 kills, 20 power cuts (root), 4 builders
    python tools/storm.py --kills 20 --traced 0 --cuts 0 --builders 2 --units 8

Traced kills need strace; power cuts need root, loop devices and mkfs.ext4. A power cut is
simulated: workers in an ext4 image on a loop device are stopped, the image is copied as it is at
that instant, without what the kernel had not yet written, and the copy is mounted and checked.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kolm_build.core.derivation import Derivation
from kolm_build.core.digest import Digest
from kolm_build.core.numerics import Numerics
from kolm_build.core.realisation import Realisation
from kolm_build.store.local import LocalStore

IMAGE_MIB = 192
SYSCALLS = (
    *("rename", "fsync", "fdatasync", "pwrite64", "syncfs", "unlink", "mkdir", "flock"),
    *("write", "ftruncate", "fcntl"),
)
POOL = [bytes([number]) * (900 * number + 1) for number in range(24)]
"""Contents that many builds share, so that objects die and come back."""


# What a worker does


def derivation_of(name: str) -> Derivation:
    return Derivation(
        name="storm",
        step="script",
        code=Digest.of_blob(b"storm"),
        environment=None,
        params=(("name", name),),
        inputs=(),
        outputs=(("out", None),),
        numerics=Numerics(cls="exact-1"),
    )


def weights(random: Random) -> bytes:
    tensors = {"base": POOL[20], "tuned": random.randbytes(6000), "norm": POOL[1]}
    table, at = {}, 0
    for name, data in tensors.items():
        table[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    header = json.dumps(table).encode()
    return len(header).to_bytes(8, "little") + header + b"".join(tensors.values())


def write_output(folder: Path, random: Random) -> None:
    for number in range(random.choice((1, 3, 45))):
        data = random.choice(POOL) if random.random() < 0.5 else random.randbytes(200)
        (folder / f"f{number}").write_bytes(data)
    if random.random() < 0.4:
        (folder / "sub").mkdir()
        (folder / "sub/model.safetensors").write_bytes(weights(random))
    if random.random() < 0.1:
        (folder / "large").write_bytes(random.randbytes((3 << 20) + random.choice((0, 5))))


def build(store: LocalStore, name: str, random: Random, note: Callable[[str], None]) -> None:
    """One build, as the engine does it; noted once it is kept."""
    made = derivation_of(name)
    key = made.resolved_digest
    with store.lock(key, on_wait=lambda _: None), store.scratch() as scratch:
        (scratch / "out").mkdir()
        write_output(scratch / "out", random)
        content = store.ingest(scratch / "out")
        drv = store.put_derivation(made)
        store.add_realisation(
            Realisation(resolved=key, output="out", content=content),
            derivation=drv,
            circumstances={"name": name},
        )
        store.add_root(name, derivations=[drv])
        note(f"+ {name} {content}")


def work(root: Path, journal: Path, seed: int, units: int, *, collects: float = 0.1) -> None:
    """Build, and now and then let go of a root or collect."""
    random = Random(seed)
    file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(line: str) -> None:
        os.write(file, f"{line}\n".encode())

    mine: list[str] = []
    with LocalStore.open(root) as store:
        for unit in range(units):
            name = f"s{seed}-{unit}"
            build(store, name, random, note)
            mine.append(name)
            if random.random() < 0.4:
                gone = mine.pop(random.randrange(len(mine)))
                note(f"- {gone}")
                store.remove_root(gone)
            if random.random() < collects:
                store.collect(dry_run=False)


def collect_until_killed(root: Path) -> None:
    while True:
        with LocalStore.open(root) as store:
            store.collect(dry_run=False)


# What is checked


@dataclass
class Tally:
    """One line of the table."""

    name: str
    rounds: int = 0
    kept: int = 0
    litter: int = 0
    findings: int = 0
    lost: int = 0
    seconds: float = 0.0

    def line(self) -> str:
        """Its row."""
        return (
            f"{self.name:<34}{self.rounds:>7}{self.kept:>8}{self.litter:>8}"
            f"{self.findings:>10}{self.lost:>6}{self.seconds:>9.1f}"
        )


def expected(lines: list[str]) -> dict[str, Digest]:
    """What the journal says is kept."""
    kept: dict[str, Digest] = {}
    for line in lines:
        sign, name, *rest = line.split()
        if sign == "+":
            kept[name] = Digest.parse(rest[0])
        else:
            kept.pop(name, None)
    return kept


def read_journal(journal: Path) -> list[str]:
    """Its whole lines; the last may be cut short."""
    text = journal.read_text() if journal.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def missing(store: LocalStore, kept: dict[str, Digest]) -> list[str]:
    """The names whose root, claim or content is gone."""
    roots = {root.name for root in store.roots()}
    present = store.has_trees(kept.values())
    keys = {name: (derivation_of(name).resolved_digest, "out") for name in kept}
    claims = store.contents_of(list(keys.values()))
    return [
        name
        for name, content in kept.items()
        if name not in roots or content not in present or content not in claims.get(keys[name], ())
    ]


def check(root: Path, lines: list[str], tally: Tally, *, whole: bool) -> None:
    """Count what is lost and, where asked, what fsck finds."""
    kept = expected(lines)
    with LocalStore.open(root) as store:
        lost = missing(store, kept)
        tally.lost += len(lost)
        tally.kept = len(kept)
        if whole:
            report = store.fsck(deep=True)
            tally.findings += len(report.findings)
            tally.litter += report.litter
            for finding in report.findings[:5]:
                print(f"  {finding.trouble}: {finding.path}", file=sys.stderr)
        for name in lost[:5]:
            print(f"  lost: {name}", file=sys.stderr)


# The storms


def spawn(task: Callable[[], None]) -> int:
    """Run `task` in a forked process; its number."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            task()
            status = 0
        finally:
            os._exit(status)
    return child


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@contextmanager
def timed(tally: Tally) -> Iterator[Tally]:
    start = time.monotonic()
    yield tally
    tally.seconds = time.monotonic() - start
    print(tally.line(), flush=True)


def storm_of_kills(place: Path, kills: int, random: Random) -> Tally:
    """Two workers at a time, each killed at a random moment."""
    root, journal = place / "kills", place / "kills.journal"
    with timed(Tally("kill -9 at random moments")) as tally:
        while tally.rounds < kills:
            seeds = [random.randrange(1 << 40) for _ in range(2)]
            children = [spawn(partial(work, root, journal, seed, 1000)) for seed in seeds]
            for child in children:
                time.sleep(random.expovariate(1 / 0.12))
                kill(child)
                tally.rounds += 1
            whole = tally.rounds % 20 < 2 or tally.rounds >= kills
            check(root, read_journal(journal), tally, whole=whole)
            if whole:
                forget(root, read_journal(journal), journal)
    return tally


def storm_of_traced_kills(place: Path, kills: int) -> Tally:
    """A worker killed at the n-th call of one kind, for each kind and n in turn."""
    root, journal = place / "traced", place / "traced.journal"
    with timed(Tally("kill -9 at chosen system calls")) as tally:
        for round_ in range(kills):
            call, when = SYSCALLS[round_ % len(SYSCALLS)], round_ // len(SYSCALLS) + 1
            inject = f"inject={call}:signal=KILL:when={when}"
            worker = [sys.executable, "-B", __file__, "--work", root, journal, str(round_)]
            command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", inject, *worker]
            subprocess.run(list(map(str, command)), check=False, stderr=subprocess.DEVNULL)
            tally.rounds += 1
            if root.exists():
                check(root, read_journal(journal), tally, whole=round_ % 5 == 4)
    return tally


def storm_of_power_cuts(place: Path, cuts: int, random: Random) -> Tally:
    """The disk as it is at a random moment, mounted again; the next cut goes on from there."""
    image, journal, mount = place / "disk.img", place / "cuts.journal", place / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_MIB << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    with timed(Tally("power cuts")) as tally:
        for _ in range(cuts):
            lines = cut(image, mount, journal, random)
            with mounted(image, mount):
                check(mount / "store", lines, tally, whole=True)
                forget(mount / "store", lines, journal)
            tally.rounds += 1
    return tally


def cut(image: Path, mount: Path, journal: Path, random: Random) -> list[str]:
    """Let workers run, then cut the power: `image` is what the disk holds. What was promised."""
    copy = image.with_suffix(".cut")
    with mounted(image, mount):
        root = mount / "store"
        seeds = [random.randrange(1 << 40) for _ in range(2)]
        children = [spawn(partial(work, root, journal, seed, 1000)) for seed in seeds]
        time.sleep(0.2 + random.expovariate(1 / 0.5))
        for child in children:
            os.kill(child, signal.SIGSTOP)
        lines = read_journal(journal)
        subprocess.run(["cp", "--sparse=always", image, copy], check=True)
        for child in children:
            kill(child)
    copy.rename(image)
    return lines


def forget(root: Path, lines: list[str], journal: Path) -> None:
    """Make room: drop most roots, from the journal first; it then says what the disk holds."""
    kept = expected(lines)
    stay = dict(list(kept.items())[-10:])
    journal.write_text("".join(f"+ {name} {content}\n" for name, content in stay.items()))
    with LocalStore.open(root) as store:
        for found in store.roots():
            if found.name not in stay:
                store.remove_root(found.name)
        store.collect(dry_run=False)


@contextmanager
def mounted(image: Path, mount: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", mount], check=True)


def storm_of_collectors(place: Path, builders: int, units: int, random: Random) -> Tally:
    """A collector that never rests, beside builders."""
    root, journal = place / "gc", place / "gc.journal"
    with timed(Tally(f"gc beside {builders} builders")) as tally:
        seeds = [random.randrange(1 << 40) for _ in range(builders)]
        collector = spawn(lambda: collect_until_killed(root))
        workers = [spawn(partial(work, root, journal, seed, units, collects=0)) for seed in seeds]
        failed = sum(os.waitpid(worker, 0)[1] != 0 for worker in workers)
        kill(collector)
        tally.rounds = builders * units
        tally.lost += failed
        check(root, read_journal(journal), tally, whole=True)
    return tally


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Try to make a store lose something.")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--traced", type=int, default=220)
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--builders", type=int, default=4)
    parser.add_argument("--units", type=int, default=60, help="builds of each builder beside gc")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--place", type=Path, default=None, help="where to make the stores")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    args = parse()
    if args.work:
        root, journal, seed = args.work
        work(Path(root), Path(journal), int(seed), 3, collects=0.5)
        return 0
    random = Random(args.seed)
    memory = Path("/dev/shm")
    base = args.place or (memory if os.access(memory, os.W_OK) else None)
    print(f"{'storm':<34}{'rounds':>7}{'kept':>8}{'litter':>8}{'findings':>10}{'lost':>6}{'s':>9}")
    with TemporaryDirectory(dir=base) as folder:
        place = Path(folder)
        tallies = [storm_of_kills(place, args.kills, random)] if args.kills else []
        if args.traced and skip("strace", is_there=shutil.which("strace") is not None):
            tallies.append(storm_of_traced_kills(place, args.traced))
        if args.cuts and skip("root and mkfs.ext4", is_there=can_mount()):
            tallies.append(storm_of_power_cuts(place, args.cuts, random))
        if args.builders:
            tallies.append(storm_of_collectors(place, args.builders, args.units, random))
    return 1 if any(tally.lost or tally.findings for tally in tallies) else 0


def skip(what: str, *, is_there: bool) -> bool:
    if not is_there:
        print(f"  left out: {what} is needed")
    return is_there


def can_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mkfs.ext4") is not None


if __name__ == "__main__":
    sys.exit(main())
