"""Compare packs with tar and SHA-256, in one run (docs/performance.md).

    python tools/bench_pack.py [--place FOLDER] [--rounds 3] [--mib 512] [--files 10000]

One large file and many small ones, held in a store, are packed and taken into an empty store; the
peer is `tar -c` and `tar -x` of the same files with `sha256sum` of the archive, which check less: a
pack's objects are hashed twice on the way in (BLAKE3, SHA-256) and made durable. Each figure is
processor time of whole processes, the median of the rounds; the tools take turns.
"""

import argparse
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
MEAN_BYTES = 6700

MAKE = """
import sys
from pathlib import Path
from kolm_build.core.derivation import ContentInput, Derivation
from kolm_build.core.numerics import Numerics
from kolm_build.store.local import LocalStore
with LocalStore.open(Path(sys.argv[1])) as store:
    tree = store.ingest(Path(sys.argv[2]))
    made = Derivation(
        name="x", step="script", code=tree, environment=None, params=(),
        inputs=(("data", ContentInput(content=tree)),), outputs=(("out", None),),
        numerics=Numerics(cls="exact-1"),
    )
    store.add_root("bench", trees=[tree], derivations=[store.put_derivation(made)])
"""
EXPORT = """
import sys
from pathlib import Path
from kolm_build.core.derivation import OutputInput
from kolm_build.store.local import LocalStore
from kolm_build.store.packer import Wanted
with LocalStore.open(Path(sys.argv[1])) as store, Path(sys.argv[2]).open("wb") as file:
    (root,) = store.roots()
    output = OutputInput(derivation=root.derivations[0], output="out")
    wanted = Wanted(name="x", outputs={"x": output}, project=root.trees[0], environments={},
                    without_outputs=True)
    store.write_pack(store.plan_pack(wanted), file.write)
"""
IMPORT = """
import sys
from pathlib import Path
from kolm_build.store.local import LocalStore
from kolm_build.store.packfile import PackFile
with LocalStore.open(Path(sys.argv[1])) as store, PackFile.open(Path(sys.argv[2])) as file:
    store.take_pack(file)
"""


def cpu_s(*commands: Sequence[str]) -> float:
    """Processor seconds of running `commands` one after the other."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for command in commands:
        subprocess.run(
            command,
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def make_files(folder: Path, *, mib: int, files: int) -> None:
    """Random files: one large, the others small."""
    numbers = Random(0)
    folder.mkdir()
    with (folder / "large.bin").open("wb") as large:
        for _ in range(mib):
            large.write(numbers.randbytes(1 << 20))
    for number in range(files):
        place = folder / f"{number % 100:02}"
        place.mkdir(exist_ok=True)
        size = numbers.randrange(2 * MEAN_BYTES)
        (place / f"{number}.txt").write_bytes(numbers.randbytes(size))


def python(code: str, *argv: Path) -> list[str]:
    return [sys.executable, "-c", code, *map(str, argv)]


def rounds(place: Path, count: int) -> dict[str, list[float]]:
    """What is measured to processor seconds, a figure a round."""
    found: dict[str, list[float]] = {name: [] for name in ("export", "tar -c", "import", "tar -x")}
    pack, archive, files = place / "x.kolmpack", place / "x.tar", place / "files"
    for turn in range(count):
        store, out = place / f"in{turn}", place / f"out{turn}"
        out.mkdir()
        found["export"].append(cpu_s(python(EXPORT, place / "store", pack)))
        tar = ["tar", "-cf", str(archive), "-C", str(files), "."]
        found["tar -c"].append(cpu_s(tar, ["sha256sum", str(archive)]))
        found["import"].append(cpu_s(python(IMPORT, store, pack)))
        untar = ["tar", "-xf", str(archive), "-C", str(out)]
        found["tar -x"].append(cpu_s(["sha256sum", str(archive)], untar))
        for folder in (store, out):
            subprocess.run(["rm", "-rf", str(folder)], check=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--place", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--files", type=int, default=10_000)
    args = parser.parse_args()
    with TemporaryDirectory(dir=args.place) as folder:
        place = Path(folder)
        make_files(place / "files", mib=args.mib, files=args.files)
        subprocess.run(
            python(MAKE, place / "store", place / "files"),
            check=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        found = rounds(place, args.rounds)
    times = {name: median(some) for name, some in found.items()}
    for ours, peer in (("export", "tar -c"), ("import", "tar -x")):
        ratio = median(one / two for one, two in zip(found[ours], found[peer], strict=True))
        print(f"{ours} {times[ours]:.2f} s, {peer} and sha256sum {times[peer]:.2f} s: {ratio:.2f}")


if __name__ == "__main__":
    main()
