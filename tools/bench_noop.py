"""Time the build with nothing to do, against nix-build and dvc repro in one run.

    python tools/bench_noop.py [--rounds 7] [--nodes 10000] [--dvc PATH | --no-dvc] [--place FOLDER]

Three projects of one shape: ten steps in a chain, each copying a small file. Each is built once;
then the tools take turns at building it again, whole process, in milliseconds. Then a kolm project
of many nodes whose results are in the store: worked out from the recipe, and told from the note.
Without --dvc the tool is installed into a throwaway environment below the place.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

ROOT = Path(__file__).resolve().parent.parent
STEPS = 10

SCRIPT = """
def run(inputs, out, params):
    text = (inputs["before"] / "text").read_text() if "before" in inputs else "start"
    (out / "text").write_text(text + " " + str(params["index"]))
"""
# Installed programs have their compiled files; a developer's shell may forbid writing them.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}
HEAVY = ("torch", "transformers", "numpy", "requests", "pydantic")


def run(command: list[str | Path], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{command[0]} failed in {folder}:\n{done.stdout}{done.stderr}")
    return done.stderr


# The three projects: each gives what builds it again


def kolm_recipe(nodes: int) -> str:
    parts = ['version = 1\nname = "bench"\n']
    for index in range(nodes):
        before = "" if index == 0 else f', before = "n{index - 1}"'
        parts.append(
            f'\n[[step]]\nname = "n{index}"\nstep = "script"\n'
            f'inputs = {{ script = "path:./step.py"{before} }}\n'
            f'params = {{ entry = "step.py", index = {index} }}\n'
        )
    return "".join(parts)


class Kolm(Protocol):
    """Runs a command of kolm; what it printed on stderr."""

    def __call__(self, command: str, *flags: str) -> str:
        """`flags` are the interpreter's."""


def kolm_project(place: Path, nodes: int) -> Kolm:
    """Make the project and lock it; gives what runs a kolm command in it."""
    place.mkdir()
    (place / "step.py").write_text(SCRIPT)
    (place / "kolm.toml").write_text(kolm_recipe(nodes))

    def kolm(command: str, *flags: str) -> str:
        program = [sys.executable, *flags, "-m", "kolm_build", command]
        return run(
            [*program, "--store", place / "store"],
            place,
            PYTHONPATH=str(ROOT),
            PYTHONSAFEPATH="1",
            PYTHONPYCACHEPREFIX=str(place / "pyc"),
        )

    kolm("lock")
    return kolm


def nix_project(place: Path) -> Callable[[], str]:
    place.mkdir()
    (place / "nix.conf").write_text("sandbox = false\nsubstituters =\nbuild-users-group =\n")
    (place / "pipe.nix").write_text(
        "let step = index: before: derivation {\n"
        '  name = "step${toString index}"; system = builtins.currentSystem; builder = "/bin/sh";\n'
        '  args = [ "-c" "echo ${toString index} ${before} > $out" ]; };\n'
        f'in builtins.foldl\' (before: index: step index "${{before}}") "start" '
        f"(builtins.genList (index: index) {STEPS})\n"
    )
    environment = {
        "NIX_CONF_DIR": str(place),
        "NIX_REMOTE": "",
        "NIX_STORE_DIR": str(place / "nix/store"),
        "NIX_STATE_DIR": str(place / "nix/state"),
        "NIX_LOG_DIR": str(place / "nix/log"),
    }
    return lambda: run(["nix-build", "--no-out-link", "pipe.nix"], place, **environment)


def dvc_project(place: Path, program: str) -> Callable[[], str]:
    place.mkdir()
    (place / "f0").write_text("start")
    stages = "".join(
        f"  s{index}:\n    cmd: cp f{index} f{index + 1}\n    deps: [f{index}]\n"
        f"    outs: [f{index + 1}]\n"
        for index in range(STEPS)
    )
    (place / "dvc.yaml").write_text("stages:\n" + stages)
    run(["git", "init", "-q"], place)
    run([program, "init", "-q"], place)
    run([program, "config", "core.analytics", "false"], place)
    return lambda: run([program, "repro", "-q"], place)


def install_dvc(place: Path) -> str:
    """A dvc in an environment of its own; its path."""
    print("installing dvc into a throwaway environment …", flush=True)
    run([sys.executable, "-m", "venv", place / "dvc-env"], place)
    run([place / "dvc-env/bin/python", "-m", "pip", "install", "-q", "dvc"], place)
    return str(place / "dvc-env/bin/dvc")


# Measuring


def milliseconds(task: Callable[[], object]) -> float:
    start = time.perf_counter()
    task()
    return (time.perf_counter() - start) * 1000


def compare(tasks: dict[str, Callable[[], object]], rounds: int) -> None:
    """Print the least and the median of each, and the ratio to kolm."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            times[name].append(milliseconds(task))
    mine = min(times["kolm build"])
    print(f"{'no-op of ten steps, ms':<34}{'least':>9}{'median':>9}{'to kolm':>9}")
    for name, some in times.items():
        least, median = min(some), statistics.median(some)
        print(f"{name:<34}{least:>9.0f}{median:>9.0f}{least / mine:>8.1f}x")


def fill(place: Path) -> int:
    """Claim a result for every node of the project in `place`; how many there are."""
    sys.path.insert(0, str(ROOT))
    from kolm_build.core.derivation import OutputInput
    from kolm_build.core.digest import Digest
    from kolm_build.store.local import LocalStore
    from kolm_build.surfaces.building import prepare
    from kolm_build.surfaces.project import open_project

    (place / "result").mkdir()
    (place / "result" / "text").write_text("result")
    with LocalStore.open(place / "store") as store:
        nodes = prepare(open_project(place, lock=None), store).instance.derivations
        content = store.ingest(place / "result")
        store.add_root("bench", trees=[content])
        known: dict[OutputInput, Digest] = {}
        rows = []
        for digest, node in nodes.items():
            key = node.resolve(known).resolved_digest
            known[OutputInput(derivation=digest, output="out")] = content
            rows.append((key.raw, "out", key.raw, content.raw, digest.raw))
            store.put_derivation(node)
        index = store._index  # noqa: SLF001  # ten thousand real claims would take minutes
        with index.transaction():
            index.execute("insert into claim values (?, ?, ?, ?, ?)", rows)
    return len(nodes)


def measure_large(place: Path, nodes: int) -> None:
    kolm = kolm_project(place, nodes)
    count = fill(place)
    time.sleep(2.1)  # a note is not written while a source is that young
    first = milliseconds(lambda: kolm("build"))
    again = min(milliseconds(lambda: kolm("build")) for _ in range(3))
    print(f"{f'no-op of {count:,} nodes, ms':<34}{'worked out':>12}{'told':>9}")
    print(f"{'kolm build':<34}{first:>12.0f}{again:>9.0f}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the build with nothing to do.")
    parser.add_argument("--place", type=Path, default=None, help="where to work")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--nodes", type=int, default=10_000, help="size of the large graph; 0: none"
    )
    parser.add_argument("--dvc", help="the dvc program; installed on demand")
    parser.add_argument("--no-dvc", action="store_true")
    args = parser.parse_args()
    with TemporaryDirectory(dir=args.place) as folder:
        place = Path(folder)
        kolm = kolm_project(place / "kolm", STEPS)
        tasks: dict[str, Callable[[], object]] = {
            "kolm build": lambda: kolm("build"),
            "nix-build": nix_project(place / "nix"),
        }
        if not args.no_dvc:
            tasks["dvc repro"] = dvc_project(place / "dvc", args.dvc or install_dvc(place))
        tasks["python -c pass"] = lambda: run([sys.executable, "-c", "pass"], place)
        for name, task in tasks.items():
            print(f"{name}: first run {milliseconds(task):.0f} ms", flush=True)
        time.sleep(2.1)  # a note is not written while a source is that young
        kolm("build")
        compare(tasks, args.rounds)
        imports = kolm("build", "-X", "importtime")
        heavy = [name for name in HEAVY if f"| {name}\n" in imports.replace("   ", " ")]
        print(f"heavy imports of the no-op: {', '.join(heavy) or 'none'}")
        if args.nodes:
            measure_large(place / "large", args.nodes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
