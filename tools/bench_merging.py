"""Merging beside mergekit: CPU time and peak memory of whole runs, and how far the results differ.

    pip install --no-deps --target PEER mergekit==0.1.5 immutables sentencepiece protobuf scipy
    python tools/bench_merging.py --peer PEER BASE MODEL MODEL [ALGORITHM …]

Each run is a process of its own, ours and mergekit's in turn, both with one thread, both
computing in float32 and writing bfloat16. A ratio is the median over pairs of (mergekit / ours):
above 1 ours is the smaller. What draws random numbers differs by its draws, and is not compared.
"""

import argparse
import importlib
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent

CASES: dict[str, tuple[str, dict[str, str], dict[str, object], dict[str, object]]] = {
    # algorithm: mergekit's name, our parameters, its shared ones, its ones of each model
    "soup": ("linear", {}, {}, {"weight": 1.0}),
    "task-arithmetic": ("task_arithmetic", {"weights": "0.5"}, {}, {"weight": 0.5}),
    "slerp": ("slerp", {}, {"t": 0.5}, {}),
    "ties": ("ties", {"density": "0.2"}, {}, {"weight": 1.0, "density": 0.2}),
    "breadcrumbs": (
        "breadcrumbs",
        {"weights": "0.5"},
        {},
        {"weight": 0.5, "density": 0.9, "gamma": 0.01},
    ),
    "model-stock": ("model_stock", {}, {}, {}),
    "dare-ties": ("dare_ties", {}, {}, {"weight": 1.0, "density": 0.5}),
    "della": ("della", {}, {}, {"weight": 1.0, "density": 0.5, "epsilon": 0.1}),
}
RANDOM = ("dare-ties", "della")


def main() -> int:
    """Print a line for each algorithm."""
    parser = argparse.ArgumentParser(description="Compare merging with mergekit's.")
    parser.add_argument("--peer", required=True, help="folder that mergekit is installed in")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each")
    parser.add_argument("base", help="folder of the base model")
    parser.add_argument("models", nargs=2, help="folders of two models")
    parser.add_argument("algorithms", nargs="*", help="; ".join(CASES))
    parser.add_argument("--child", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        run = run_ours if given.child == "ours" else run_peer
        run(given.base, given.models, given.algorithms[0], given.out)
        return 0
    print(f"{'algorithm':16} {'ours':>8} {'mergekit':>9} {'time':>6} {'memory':>14} {'ratio':>6}")
    for algorithm in given.algorithms or CASES:
        compare(given, algorithm)
    return 0


def compare(given: argparse.Namespace, algorithm: str) -> None:
    """Run both in turn and print what was measured."""
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        places = {who: Path(folder) / who for who in ("ours", "peer")}
        pairs = [
            tuple(measured(given, who, algorithm, places[who] / str(number)) for who in places)
            for number in range(given.pairs)
        ]
        difference = "random draws" if algorithm in RANDOM else differ(*places.values())
    times = [median(pair[side][0] for pair in pairs) for side in (0, 1)]
    sizes = [median(pair[side][1] for pair in pairs) for side in (0, 1)]
    time_ratio = median(theirs[0] / ours[0] for ours, theirs in pairs)
    size_ratio = median(theirs[1] / ours[1] for ours, theirs in pairs)
    print(
        f"{algorithm:16} {times[0]:6.1f} s {times[1]:7.1f} s {time_ratio:6.2f} "
        f"{sizes[0]:5.0f}/{sizes[1]:5.0f} MB {size_ratio:6.2f}  {difference}",
        flush=True,
    )


def measured(given: argparse.Namespace, who: str, algorithm: str, out: Path) -> tuple[float, float]:
    """CPU seconds and peak megabytes of one run."""
    out.parent.mkdir(exist_ok=True)
    path = f"{ROOT}:{given.peer}" if who == "peer" else str(ROOT)
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    rest = ["--out", str(out), given.base, *given.models, algorithm]
    child = subprocess.Popen(
        [sys.executable, __file__, "--peer", given.peer, "--child", who, *rest],
        env={"PATH": os.environ["PATH"], "HOME": str(out.parent), "PYTHONPATH": path, **threads},
        stderr=subprocess.PIPE,
    )
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        assert child.stderr is not None
        sys.exit(f"{who}, {algorithm}: {child.stderr.read().decode()[-2000:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def run_ours(base: str, models: list[str], algorithm: str, out: str) -> None:
    """The step, in this process."""
    from kolm_build.core.numerics import Numerics
    from kolm_build.core.request import Circumstances, StepRequest
    from kolm_build.numerics.kernels import LIBRARY

    Path(out).mkdir()
    events = os.open(os.devnull, os.O_WRONLY)
    request = StepRequest(
        step="combine",
        params={"algorithm": algorithm, **CASES[algorithm][1]},
        inputs={"model": base} | {f"models-{n}": one for n, one in enumerate(models, 1)},
        outputs={"model": out},
        scratch=out,
        numerics=Numerics(cls="portable-1"),
        events_fd=events,
        circumstances=Circumstances(kernels=str(LIBRARY), threads=1),
    )
    file = Path(f"{out}.request")
    file.write_bytes(request.encode())
    step = importlib.import_module("kolm_build.steps.combine")
    sys.exit(step.main(["step.py", str(file)]))


def run_peer(base: str, models: list[str], algorithm: str, out: str) -> None:
    """mergekit, in this process."""
    config = importlib.import_module("mergekit.config")
    merge = importlib.import_module("mergekit.merge")
    options = importlib.import_module("mergekit.options")
    name, _, shared, own = CASES[algorithm]
    listed = models if name != "slerp" else [base, models[1]]
    with_base = {} if name == "linear" else {"base_model": base}
    if name == "slerp":
        with_base, listed = {"base_model": models[0]}, models
    value = {
        "merge_method": name,
        "models": [{"model": one, "parameters": own} for one in listed],
        "parameters": shared,
        "dtype": "float32",
        "out_dtype": "bfloat16",
        **with_base,
    }
    merge.run_merge(
        config.MergeConfiguration.model_validate(value),
        out_path=out,
        options=options.MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False),
    )


def differ(ours: Path, peer: Path) -> str:
    """How far the two results are apart, in units of the last place of bfloat16."""
    from safetensors.torch import load_file

    mine = load_file(next((ours / "0").glob("*.safetensors")))
    theirs: dict[str, Tensor] = {}
    for path in sorted((peer / "0").glob("*.safetensors")):
        theirs |= load_file(path)
    elements = unequal = 0
    greatest = 0.0
    for name, one in mine.items():
        other = theirs[name]
        elements += one.numel()
        unequal += int((one != other).sum())
        greatest = max(greatest, float((one.float() - other.float()).abs().max()))
    return f"{unequal} of {elements} elements differ, by {greatest:.1e} at most"


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main())
