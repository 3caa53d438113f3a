"""Whole PyTorch trainings on emulated machines: do they end in the weights of this one?

Two guests, both by qemu's user mode, which computes IEEE additions, products, fused multiply-adds,
quotients and square roots exactly:

- ``aarch64``: another architecture, another C library build, another torch (2.9.1), NEON kernels;
- ``haswell``: an Intel processor of 2013 under the environment that runs this program.

The rows and their settings are those of tools/portability.py. The first run makes a folder of
1.5 GB: Debian's arm64 packages, the wheels, and the kernels cross-compiled. Needs Debian's
debootstrap, qemu-user-static and g++-aarch64-linux-gnu, and takes about half an hour.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROWS = "llama-full,llama-lora,gpt2-full,gpt2-lora,qwen2-full,t5-full"
GUEST_TORCH = "torch==2.9.1"
SUITE = "bookworm"
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64", "any")
GUESTS = {
    "aarch64": f"qemu-user, NEON kernels, {GUEST_TORCH}, Debian {SUITE}; no guard",
    "haswell": "qemu-user, AVX2 kernels, the torch of constraints.txt",
}
NEEDED = {
    "debootstrap": "debootstrap",
    "qemu-aarch64-static": "qemu-user-static",
    "qemu-x86_64-static": "qemu-user-static",
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
}
# What the guest's transformers and PEFT import; the versions are constraints.txt's.
GUEST_DISTRIBUTIONS = """
accelerate annotated-doc anyio certifi charset-normalizer click filelock fsspec h11 hf-xet
httpcore2 httpx2 huggingface_hub idna Jinja2 markdown-it-py MarkupSafe mdurl mpmath networkx
numpy packaging peft psutil Pygments PyYAML regex requests rich safetensors shellingham sympy
blake3 tokenizers tqdm transformers truststore typer typing_extensions urllib3"""


@dataclass(frozen=True, slots=True)
class Guest:
    """An emulated machine, or this one.

    Attributes:
        name: What the table calls it.
        isa: The instruction set of the kernels there.
        options: Further ones for tools/portability.py.
        command: What to put before a Python program and its arguments.
    """

    name: str
    isa: str
    command: tuple[str, ...]
    options: tuple[str, ...] = ()


def missing_tools() -> list[str]:
    """Debian's packages to install, sorted."""
    absent = {package for tool, package in NEEDED.items() if shutil.which(tool) is None}
    return sorted(absent)


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run a command of the preparation; its output only where it fails."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def debian(guest: Path) -> None:
    """Unpack Debian's arm64 Python below `guest`; nothing of it is ever run by this machine."""
    include = "--include=python3,libgomp1,libstdc++6"
    run("debootstrap", "--arch=arm64", "--variant=minbase", "--foreign", include, SUITE, guest)
    for package in sorted((guest / "var/cache/apt/archives").glob("*.deb")):
        run("dpkg", "-x", package, guest)


def wheels(guest: Path) -> None:
    """Unpack torch and what transformers needs into the guest's ``/sp``."""
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.partition("==")[0] in GUEST_DISTRIBUTIONS.split()
    ]
    found = guest.parent / "wheels"
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", found),
        *(*platforms, "--python-version", "3.11", "--only-binary", ":all:", GUEST_TORCH, *pins),
    )
    for wheel in sorted(found.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(guest / "sp")


def library(guest: Path) -> None:
    """Cross-compile the kernels against the guest's torch, into the guest's ``/kernels``."""
    build = guest.parent / "kernels"
    run(
        *("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DCMAKE_SYSTEM_NAME=Linux"),
        *("-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++"),
        *("-DKOLM_TESTING=OFF", f"-DKOLM_TORCH_DIR={guest / 'sp' / 'torch'}"),
    )
    run("cmake", "--build", build)
    (guest / "kernels").mkdir(exist_ok=True)
    shutil.copy2(next(build.rglob("libkolm_portable.so")), guest / "kernels")


def prepared(folder: Path) -> Path:
    """The aarch64 guest's root; made where it is not there. The kernels are compiled every time."""
    guest, done = folder / "aarch64", folder / "aarch64.done"
    if not done.exists():
        shutil.rmtree(guest, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        debian(guest)
        wheels(guest)
        done.touch()
    library(guest)
    (guest / "project").mkdir(exist_ok=True)
    return guest


def aarch64(guest: Path) -> Guest:
    """The guest of another architecture, in a sandbox of its own root."""
    qemu, kernels = shutil.which("qemu-aarch64-static"), guest / "kernels/libkolm_portable.so"
    assert qemu is not None  # `missing_tools` looked
    sandbox = (
        *(bwrap(), "--unshare-all", "--die-with-parent", "--bind", str(guest), "/"),
        *("--proc", "/proc", "--dev", "/dev", "--ro-bind", qemu, qemu),
        *("--ro-bind", str(ROOT), "/project", "--chdir", "/project"),
        *("--ro-bind", str(kernels), "/project/kolm_build/numerics/libkolm_portable.so"),
        *("--setenv", "PYTHONDONTWRITEBYTECODE", "1"),
    )
    python = (qemu, "-E", "PYTHONPATH=/project:/sp", "/usr/bin/python3.11", "-S")
    # The guard's table is for the pinned torch, and this is another one.
    return Guest("aarch64", "neon", (*sandbox, *python), ("--unguarded",))


def haswell() -> Guest:
    """The processor of 2013 under this program's own interpreter."""
    qemu = shutil.which("qemu-x86_64-static")
    assert qemu is not None  # `missing_tools` looked
    return Guest("haswell", "avx2", (qemu, "-cpu", "Haswell-noTSX", sys.executable))


def bwrap() -> str:
    """The sandbox's program, the one that builds use."""
    from kolm_build.engine.sandbox import find_sandbox

    return str(find_sandbox().bwrap)


def trained(guest: Guest, rows: Sequence[str], steps: int) -> dict[str, str]:
    """The digest of each row's final weights in `guest`, one row at a time."""
    found: dict[str, str] = {}
    for row in rows:
        start = time.perf_counter()
        program = ("tools/portability.py", "--worker", guest.isa, "1", "--rows", row)
        found |= _answer(guest, (*guest.command, *program, "--steps", str(steps), *guest.options))
        seconds = time.perf_counter() - start
        print(f"{guest.name:<10}{row:<14}{found[row][:16]}  {seconds:.0f} s", file=sys.stderr)
    return found


def _answer(guest: Guest, command: Sequence[str]) -> dict[str, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{guest.name}: the process failed\n{done.stderr[-3000:]}")
    answer: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return answer


def best_isa() -> str:
    """The best instruction set that this machine has."""
    from kolm_build.numerics import portable

    return portable.isas()[0]


def report(table: dict[str, dict[str, str]], steps: int) -> dict[str, object]:
    """What is written down: the day, the guests, and every digest."""
    same = all(len({found[row] for found in table.values()}) == 1 for row in table["native"])
    return {
        "date": datetime.now(tz=UTC).date().isoformat(),
        "guests": {name: GUESTS[name] for name in table if name in GUESTS},
        "same": same,
        "steps": steps,
        "table": table,
    }


def main(argv: list[str]) -> int:
    """Train everywhere, compare, write the result down; 1 where a digest differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", default=ROWS, help=f"models (default: {ROWS})")
    parser.add_argument("--steps", type=int, default=20, help="AdamW steps (default: 20)")
    parser.add_argument("--guests", default="aarch64,haswell", help="which (default: both)")
    parser.add_argument("--folder", type=Path, default=ROOT / "build/emulated", help="its files")
    parser.add_argument("--write", type=Path, help="write the result to this file")
    args = parser.parse_args(argv)
    absent = missing_tools()
    if absent:
        sys.exit(f"Programs are missing. Debian: apt install {' '.join(absent)}")
    rows, wanted = args.rows.split(","), args.guests.split(",")
    made: dict[str, Callable[[], Guest]] = {
        "aarch64": lambda: aarch64(prepared(args.folder)),
        "haswell": haswell,
    }
    guests = [made[name]() for name in wanted]
    here = Guest("native", best_isa(), (sys.executable,))
    table = {one.name: trained(one, rows, args.steps) for one in (here, *guests)}
    result = report(table, args.steps)
    text = json.dumps(result, indent=1, sort_keys=True) + "\n"
    if args.write:
        args.write.write_text(text)
    print(text, end="")
    return 0 if result["same"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
