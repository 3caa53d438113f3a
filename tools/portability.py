"""One table: models trained in many settings, and whether every setting gave the same bits.

    python tools/portability.py                   # the whole sweep, minutes
    python tools/portability.py --steps 3         # fewer steps
    python tools/portability.py --rows llama-full --without mm    # PyTorch's own mm: it differs

A column is a model, trained by AdamW with all weights or LoRA adapters; a line is a setting: the
kernels' instruction set, threads, ATen's capability, switches of MKL and oneDNN, the hash seed of
Python. Every setting is a process. Exit status 1: a model has more than one digest.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MODELS = ("llama", "gpt2", "qwen2", "t5")
ROWS = tuple(f"{model}-{kind}" for model in MODELS for kind in ("full", "lora"))


@dataclass(frozen=True)
class Setting:
    """What a process is started with.

    Attributes:
        name: The line's title.
        isa: The instruction set of the portable kernels.
        threads: Threads of the pool.
        environment: Further variables.
    """

    name: str
    isa: str
    threads: int
    environment: dict[str, str] = field(default_factory=dict)


def settings(isas: list[str]) -> list[Setting]:
    """The settings: each instruction set and thread count, then each other switch alone."""
    made = [Setting(f"{isa} t{threads}", isa, threads) for isa in isas for threads in (1, 2)]
    switches = {
        "aten default": {"ATEN_CPU_CAPABILITY": "default"},
        "aten avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
        "aten avx512": {"ATEN_CPU_CAPABILITY": "avx512"},
        "mkl compatible": {"MKL_CBWR": "COMPATIBLE"},
        "mkl avx2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
        "onednn sse41": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
        "hash seed": {"PYTHONHASHSEED": "12345"},
        "all of them": {
            "ATEN_CPU_CAPABILITY": "default",
            "MKL_CBWR": "COMPATIBLE",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "PYTHONHASHSEED": "7",
        },
    }
    return made + [Setting(name, isas[0], 2, variables) for name, variables in switches.items()]


@contextmanager
def kernels_alone() -> Iterator[None]:
    """The portable kernels without the guard, whose table is for the pinned PyTorch."""
    from kolm_build.numerics import portable

    portable.activate()
    try:
        yield
    finally:
        portable.deactivate()


def train_here(
    rows: list[str], steps: int, isa: str, threads: int, without: list[str] | None
) -> dict[str, str]:
    """The digest of each row's model, trained in this process; no guard where `without` is None."""
    import warnings

    import torch

    from kolm_build.numerics import guard, portable
    from tests.support import zoo

    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    portable.load()
    portable.set_isa(isa)
    found = {}
    for row in rows:
        model, kind = row.split("-")
        case = zoo.Case(model=model, adapters=kind == "lora", training=zoo.Training(steps=steps))
        with kernels_alone() if without is None else guard.activate(without=without):
            found[row] = case.run()
    return found


def column(rows: list[str], setting: Setting, steps: int, without: list[str]) -> dict[str, str]:
    """The digests of one process."""
    command = [sys.executable, __file__, "--worker", setting.isa, str(setting.threads)]
    command += ["--rows", ",".join(rows), "--steps", str(steps), "--without", ",".join(without)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **setting.environment}
    environment["OMP_NUM_THREADS"] = str(setting.threads)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{setting.name}: the process failed\n{done.stderr[-3000:]}")
    answer: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return answer


def sweep(
    rows: list[str], columns: list[Setting], steps: int, without: list[str]
) -> dict[str, dict[str, str]]:
    """Every digest, by setting and row."""
    table = {}
    start = time.perf_counter()
    for number, setting in enumerate(columns):
        table[setting.name] = column(rows, setting, steps, without)
        spent = time.perf_counter() - start
        left = spent / (number + 1) * (len(columns) - number - 1)
        print(f"{number + 1}/{len(columns)} {setting.name}, {left:.0f} s left", file=sys.stderr)
    return table


def differing(table: dict[str, dict[str, str]]) -> list[str]:
    """The rows with more than one digest."""
    rows = next(iter(table.values()))
    return [row for row in rows if len({found[row] for found in table.values()}) > 1]


def show(table: dict[str, dict[str, str]]) -> None:
    """Print the table: a line a setting, the first digits of each digest."""
    rows = list(next(iter(table.values())))
    width = max(map(len, table))
    print(" " * width, *(f"{row:>10}" for row in rows))
    for name, found in table.items():
        print(f"{name:<{width}}", *(f"{found[row][:8]:>10}" for row in rows))
    verdicts = ("DIFFERS" if row in differing(table) else "one" for row in rows)
    print(f"{'digests':<{width}}", *(f"{verdict:>10}" for verdict in verdicts))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(ROWS), help="models, separated by commas")
    parser.add_argument("--steps", type=int, default=20, help="AdamW steps (default: 20)")
    parser.add_argument(
        "--isas", default="", help="instruction sets (default: all this machine has)"
    )
    parser.add_argument("--without", default="", metavar="OP[,OP]", help="leave these kernels out")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--unguarded", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    without = [name for name in args.without.split(",") if name]
    if args.worker:
        isa, threads = args.worker
        rows = args.rows.split(",")
        print(
            json.dumps(
                train_here(rows, args.steps, isa, int(threads), None if args.unguarded else without)
            )
        )
        return 0
    from kolm_build.numerics import portable

    isas = [name for name in args.isas.split(",") if name] or list(portable.isas())
    rows = args.rows.split(",")
    table = sweep(rows, settings(isas), args.steps, without)
    if args.json:
        print(json.dumps({"differing": differing(table), "table": table}, indent=1, sort_keys=True))
    else:
        show(table)
    return 1 if differing(table) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
