"""Compare the store with `nix-store --add` and `dvc add`, in one run (docs/performance.md).

    python tools/bench_store.py [--place FOLDER] [--rounds 3] [--dvc PATH | --no-dvc] [--mib 1024]

Imports one large file and a tree of 10,000 small files into fresh, empty stores, then checks what
was imported. The store writes durably and computes BLAKE3 and SHA-256; nix computes SHA-256, dvc
MD5, and neither waits for the disk: "until on the disk" adds, for them, a sync of the file system
right after. Each figure is the best of the rounds, in seconds, of a whole process; the tools take
turns, so that a busy machine troubles all of them. Without --dvc the tool is installed into a
throwaway environment below the place. "disk" is the same bytes written by dd past the page cache
and flushed, nothing computed: what no durable import can beat. The rounds of an import are listed
too, with the load average of the minute before, and in how many of them kolm was the faster.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
FILES, FOLDERS = 10_000, 100
MEAN_BYTES = 6700
WARM_BYTES = 3 << 30
AGAIN = ", again"
COLD = ", from the disk"
CHECKS = ("check {}", f"check {{}}{AGAIN}", f"check {{}}{COLD}")
DURABLY = "until on the disk"
WIDTH = 34

# Installed programs have their compiled files; a developer's shell may forbid writing them.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}
MAKE = """
import sys
from pathlib import Path
from kolm_build.store.local import LocalStore
LocalStore.open(Path(sys.argv[1])).close()
"""
ADD = """
import sys
from pathlib import Path
from kolm_build.store.local import LocalStore
with LocalStore.open(Path(sys.argv[1])) as store:
    store.add_root("bench", trees=[store.ingest(Path(sys.argv[2]))])
"""
CHECK = """
import sys
from pathlib import Path
from kolm_build.store.local import LocalStore
with LocalStore.open(Path(sys.argv[1])) as store:
    sys.exit(0 if store.fsck().is_clean else 1)
"""
LOOK = """
import sys
from pathlib import Path
from kolm_build.store.local import LocalStore
with LocalStore.open(Path(sys.argv[1])) as store:
    (root,) = store.roots()
    sys.exit(0 if store.has_tree(root.trees[0]) else 1)
"""


@dataclass
class Tool:
    """A tool under measurement: how it adds and how it checks, in a fresh place."""

    name: str
    prepare: Callable[[Path], None]
    add: Callable[[Path, Path], None]
    check: Callable[[Path], None] | None
    is_durable: bool = False
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def took(self, what: str, start: float) -> None:
        """Note the time since `start`."""
        self.seconds.setdefault(what, []).append(time.perf_counter() - start)

    def best(self, what: str) -> float:
        """The fastest of the rounds."""
        return min(self.seconds[what])


def run(command: list[str | Path], **environment: str) -> None:
    subprocess.run(
        list(map(str, command)),
        check=True,
        env=ENVIRONMENT | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


# The tools


def python(text: str, *args: Path) -> None:
    """Run a script on the checkout's code."""
    run([sys.executable, "-c", text, *args], PYTHONPATH=str(ROOT))


def kolm() -> Tool:

    return Tool(
        name="kolm",
        prepare=lambda place: python(MAKE, place / "store"),
        add=lambda place, source: python(ADD, place / "store", source),
        check=lambda place: python(CHECK, place / "store"),
        is_durable=True,
    )


def nix(place: Path) -> Tool:
    conf = place / "nix-conf"
    conf.mkdir()
    (conf / "nix.conf").write_text("sandbox = false\nsubstituters =\nbuild-users-group =\n")

    def nix_store(at: Path, *args: str | Path) -> None:
        run(
            ["nix-store", *args],
            NIX_CONF_DIR=str(conf),
            NIX_REMOTE="",
            NIX_STORE_DIR=str(at / "nix/store"),
            NIX_STATE_DIR=str(at / "nix/state"),
            NIX_LOG_DIR=str(at / "nix/log"),
        )

    return Tool(
        name="nix",
        prepare=lambda at: nix_store(at, "--init"),
        add=lambda at, source: nix_store(at, "--add", source),
        check=lambda at: nix_store(at, "--verify", "--check-contents"),
    )


def disk() -> Tool:
    """The disk alone; a tree of small files is not its measure."""

    def add(at: Path, source: Path) -> None:
        flags = ["bs=4M", "oflag=direct", "conv=fdatasync"]
        run(["dd", f"if={source}", f"of={at / 'plain'}", *flags])

    return Tool(name="disk", prepare=lambda _: None, add=add, check=None, is_durable=True)


def dvc(program: str) -> Tool:
    def prepare(at: Path) -> None:
        repository = at / "dvc"
        repository.mkdir()
        run(["git", "-C", repository, "init", "-q"])
        for args in (["init", "-q"], ["config", "core.analytics", "false"]):
            run([program, "--cd", repository, *args])
        run([program, "--cd", repository, "config", "cache.type", "copy"])

    def add(at: Path, source: Path) -> None:
        run([program, "--cd", at / "dvc", "add", "-q", "--out", source.name, source])

    return Tool(name="dvc", prepare=prepare, add=add, check=None)


def install_dvc(place: Path) -> str:
    """A dvc in an environment of its own; its path."""
    print("installing dvc into a throwaway environment …", flush=True)
    run([sys.executable, "-m", "venv", place / "dvc-env"])
    run([place / "dvc-env/bin/python", "-m", "pip", "install", "-q", "dvc"])
    return str(place / "dvc-env/bin/dvc")


# The material


def make_large(path: Path, mib: int) -> Path:
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
    return path


def make_small(path: Path) -> Path:
    random = Random(1)
    for number in range(FILES):
        folder = path / f"d{number % FOLDERS:02}"
        folder.mkdir(parents=True, exist_ok=True)
        data = random.randbytes(random.randint(200, 2 * MEAN_BYTES - 200))
        (folder / f"f{number:05}").write_bytes(data)
    return path


def warm_memory() -> None:
    """Have the machine own the memory that the next task will fill.

    A virtual machine gives free memory back to its host; who needs it next pays for it.
    """
    run([sys.executable, "-c", f"b'x' * {WARM_BYTES}"])


def forget_pages(folder: Path) -> None:
    """Have the page cache give up what it holds of the files below `folder`."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(tool: Tool, place: Path, source: Path, what: str) -> None:
    """One round: a fresh store, one import, three checks.

    The first check of a large file reads kolm's copy from the disk, since an import leaves none of
    it in the page cache, and nix's from there; the second reads either from memory; the third has
    to read either from the disk.
    """
    at = place / "round"
    at.mkdir()
    tool.prepare(at)
    os.sync()
    warm_memory()
    start = time.perf_counter()
    tool.add(at, source)
    tool.took(f"add {what}", start)
    if not tool.is_durable:
        run(["sync", "--file-system", at])
    tool.took(f"add {what} {DURABLY}", start)
    if tool.check is not None:
        warm_memory()
        for when in ("", AGAIN, COLD):
            if when == COLD:
                forget_pages(at)
            start = time.perf_counter()
            tool.check(at)
            tool.took(f"check {what}{when}", start)
    if tool.name == "kolm":
        measure_look(tool, at)
    shutil.rmtree(at)


def measure_look(tool: Tool, at: Path) -> None:
    """What every command pays: Python, the store opened, one look."""
    for _ in range(5):
        start = time.perf_counter()
        python(LOOK, at / "store")
        tool.took("look", start)


def measure_plan(place: Path) -> float:
    """Seconds to look up 10,000 resolved derivations among as many claims."""
    sys.path.insert(0, str(ROOT))
    from kolm_build.core.digest import Digest
    from kolm_build.store.index import Row
    from kolm_build.store.layout import Kind
    from kolm_build.store.local import LocalStore

    keys = [Digest.of_blob(number.to_bytes(4, "big")) for number in range(10_000)]
    with LocalStore.open(place / "plan") as store:
        index = store._index  # noqa: SLF001  # ten thousand real claims would take minutes
        with index.transaction():
            rows = [(key.raw, "out", key.raw, key.raw, key.raw) for key in keys]
            index.execute("insert into claim values (?, ?, ?, ?, ?)", rows)
            index.add(Row(Kind.TREE, key, 1) for key in keys)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            found = store.contents_of([(key, "out") for key in keys])
            present = store.has_trees(content for (content,) in found.values())
            times.append(time.perf_counter() - start)
            assert len(present) == len(keys)
    return min(times)


def report(tools: list[Tool], what: list[str]) -> None:
    """The table, and how many times longer the others take."""
    print(
        f"{'seconds, best of the rounds':<{WIDTH}}" + "".join(f"{tool.name:>10}" for tool in tools)
    )
    mine = tools[0]
    for one in what:
        cells = [f"{tool.best(one):.2f}" if one in tool.seconds else "-" for tool in tools]
        print(f"{one:<{WIDTH}}" + "".join(f"{cell:>10}" for cell in cells))
        ratios = [
            f"{tool.best(one) / mine.best(one):.1f}x" if one in tool.seconds else "-"
            for tool in tools[1:]
        ]
        print(f"{'  ratio to kolm':<{WIDTH + 10}}" + "".join(f"{ratio:>10}" for ratio in ratios))


def report_rounds(tools: list[Tool], what: str, loads: list[float]) -> None:
    """Every round, and in how many the first tool was the faster."""
    mine, *others = tools
    print(f"{what}, each round: load " + ", ".join(f"{load:.1f}" for load in loads))
    for tool in others:
        if what in tool.seconds:
            pairs = list(zip(mine.seconds[what], tool.seconds[what], strict=True))
            faster = sum(one < other for one, other in pairs)
            cells = ", ".join(f"{one:.2f} / {other:.2f}" for one, other in pairs)
            print(f"  {mine.name} / {tool.name}: {cells}; faster in {faster} of {len(pairs)}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the store with nix and dvc.")
    parser.add_argument("--place", type=Path, default=None, help="where to work")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=1024, help="size of the large file")
    parser.add_argument("--dvc", help="the dvc program; installed on demand")
    parser.add_argument("--no-dvc", action="store_true")
    args = parser.parse_args()
    with TemporaryDirectory(dir=args.place) as folder:
        place = Path(folder)
        tools = [kolm(), disk()]
        if shutil.which("nix-store"):
            tools.append(nix(place))
        else:
            print("nix-store is not installed (Debian: apt install nix-bin): left out")
        if not args.no_dvc:
            tools.append(dvc(args.dvc or install_dvc(place)))
        sources = {
            f"{args.mib} MiB": make_large(place / "large", args.mib),
            f"{FILES} files": make_small(place / "small"),
        }
        time.sleep(2.1)  # files at rest, as a user's are: the stat cache keeps no younger ones
        loads = []
        for number in range(args.rounds):
            loads.append(os.getloadavg()[0])
            for what, source in sources.items():
                for tool in tools if number % 2 == 0 else tools[::-1]:
                    if tool.name != "disk" or source.is_file():
                        measure(tool, place, source, what)
        rows = ("add {}", f"add {{}} {DURABLY}", *CHECKS)
        report(tools, [form.format(what) for what in sources for form in rows])
        for what in sources:
            report_rounds(tools, f"add {what}", loads)
        print(f"start, open, one look: {tools[0].best('look') * 1000:.0f} ms")
        print(f"10,000 look-ups for a plan: {measure_plan(place) * 1000:.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
