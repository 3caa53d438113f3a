"""Quantise one model by every method and scheme, and say what each costs: bits, bytes, accuracy.

`python tools/quantisation_table.py MODEL` takes a model folder. Every row is quantised twice, in
processes that differ in PYTHONHASHSEED, threads and instruction set (the best one, then the
plainest or that of --second-isa, which for GPTQ is worth the choice); answers the held-out rows of
a recipe (--recipe, else examples/icd-triage); and is asked for the perplexity of Python's own
reference text. A row that is there (--place) is not made again, so the table may be stopped and
gone on with; --methods and --schemes choose rows. The rows of the data set are taken from a store
in which the recipe was built (`kolm build`, then --store), by what it notes of that (--outputs,
else lockfiles/NAME.outputs). Exits with 1 where two runs gave other bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from kolm_build.core import strict_json
from kolm_build.core.numerics import Numerics
from kolm_build.core.quantisation import SCHEMES
from kolm_build.core.recipe import parse_recipe
from kolm_build.core.request import Circumstances, StepRequest
from kolm_build.core.sections import Pipeline
from kolm_build.numerics.kernels import LIBRARY
from kolm_build.steps.table import INHERIT, STEPS

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "icd-triage"
PLACE = ROOT / "build" / "quantisation"
BASE = "full"
METHODS = ("rtn", "gptq", "awq", "smoothquant")
INTEGER = ("w4a16", "w4a16-asym", "w4a8", "w8a16", "w8a8", "w8a8-static")
WINDOWS, WINDOW = 6, 384
"""Perplexity is of so many pieces of text, of so many tokens."""

WAYS: Sequence[Mapping[str, Any]] = (
    {"threads": 2, "seed": "1", "isa": None},
    {"threads": 1, "seed": "4711", "isa": None},
)
"""How a row is made the first and the second time; the second's instruction set is an option's."""
COLUMNS = (
    "method",
    "scheme",
    "bits/weight",
    "tensors MB",
    "accuracy",
    "perplexity",
    "K-score",
    "CPU s",
    "two builds",
)

Row = dict[str, Any]
"""What is known of a model, as JSON has it."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """What the rows have in common.

    Attributes:
        model: The folder of the model before.
        place: Where everything is kept.
        data: The folders ``train`` and ``holdout``.
        pipeline: How the recipe evaluates and scores.
        options: What was asked for.
    """

    model: Path
    place: Path
    data: Mapping[str, Path]
    pipeline: Pipeline
    options: argparse.Namespace

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row, made or found."""
        yield self._row(BASE, "", self._full)
        for scheme in self.options.schemes:
            for method in self.options.methods:
                if method == "rtn" or is_sensible(method, scheme):
                    yield self._row(method, scheme, partial(self._quantised, method, scheme))

    def _row(self, method: str, scheme: str, make: Callable[[], Row]) -> Row:
        options = self.options
        name = "-".join(filter(None, (method, scheme, options.embeddings, str(options.group))))
        file = self.place / f"{name}.json"
        if not file.exists():
            made = {"method": method, "scheme": scheme} | make()
            file.write_text(json.dumps(made, indent=1) + "\n")
        row: Row = json.loads(file.read_text())
        return row

    def _full(self) -> Row:
        weights = self.model / "model.safetensors"
        size = weights.stat().st_size
        judged = self._judged(self.model)
        return {"bits_per_weight": None, "tensor_bytes": size, "cpu_s": 0.0, "equal": None} | judged

    def _quantised(self, method: str, scheme: str) -> Row:
        params: dict[str, str | int] = {
            "scheme": scheme,
            "method": method,
            "embeddings": self.options.embeddings,
        }
        inputs = {"model": self.model}
        if SCHEMES[scheme].is_grouped:
            params["group"] = self.options.group
        if method != "rtn" or SCHEMES[scheme].activations == "static":
            params |= self._calibration()
            inputs["calibration"] = self.data["calibration"]
        second = {**WAYS[1], "isa": self._second_isa()}
        ways = WAYS[:1] if self.options.once else (WAYS[0], second)
        runs = [run("quantise", inputs, params, self.place, **way) for way in ways]
        report = json.loads((runs[0].outputs["report"] / "quantisation.json").read_text())
        digests = {digest_of(folder.parent) for folder in (one.outputs["out"] for one in runs)}
        judged = self._judged(runs[0].outputs["out"])
        for one in runs:
            shutil.rmtree(one.outputs["out"].parents[1])
        return {
            "bits_per_weight": report["bits_per_weight"],
            "tensor_bytes": report["tensor_bytes"],
            "worst": report["worst"][:3],
            "cpu_s": round(runs[0].cpu_s, 1),
            "digest": sorted(digests),
            "equal": None if self.options.once else len(digests) == 1,
        } | judged

    def _judged(self, model: Path) -> Row:
        """Accuracy, K-score and perplexity of the folder `model`."""
        judged: Row = {"perplexity": perplexity_apart(model)}
        if self.options.no_rows:
            return judged
        evaluate = self.pipeline.evaluate
        inputs = {"model": model, "holdout": self.data["holdout"]}
        params: dict[str, str | int] = {
            "max_new_tokens": evaluate.max_new_tokens,
            "batch_size": evaluate.batch_size,
            "labels": "\n".join(evaluate.labels),
            "verifier": evaluate.verifier,
            "metric": evaluate.metric,
        }
        ran = run("evaluate", inputs, params, self.place, **WAYS[0])
        summary = json.loads((ran.outputs["out"] / "summary.json").read_text())
        scored = self._scored(model, ran.outputs["out"])
        shutil.rmtree(ran.outputs["out"].parents[1])
        cpu_s = round(ran.cpu_s, 1)
        return judged | {"evaluation": summary, "evaluation_cpu_s": cpu_s, "k": scored["k"]}

    def _calibration(self) -> Mapping[str, int]:
        rows, length = self.options.calibration_rows, self.options.calibration_length
        return {"calibration_rows": rows, "calibration_length": length}

    def _second_isa(self) -> str:
        return str(self.options.second_isa or instruction_sets()[0])

    def _scored(self, model: Path, evaluation: Path) -> Row:
        """The K-score of `model`, by the budgets of the recipe."""
        score = self.pipeline.score
        params: dict[str, str | int] = {
            "size_budget_bytes": score.size_budget_bytes,
            "latency_budget_us": score.latency_budget_us,
            "cost_budget_microusd": score.cost_budget_microusd,
            "device_name": score.device.name,
            "device_flops_per_s": score.device.flops_per_s,
            "device_bytes_per_s": score.device.bytes_per_s,
            "device_microusd_per_hour": score.device.microusd_per_hour,
        }
        inputs = {"evaluation": evaluation, "base": self.data["base"], "model": model}
        ran = run("score", inputs, params, self.place, **WAYS[0])
        found: Row = json.loads((ran.outputs["out"] / "kscore.json").read_text())
        shutil.rmtree(ran.outputs["out"].parents[1])
        return found


def pipeline_of(recipe: Path) -> Pipeline:
    """The pipeline of the recipe in the folder `recipe`."""
    found = parse_recipe((recipe / "kolm.toml").read_text()).pipeline
    if found is None:
        raise SystemExit(f"{recipe}: not a pipeline")
    return found


def is_sensible(method: str, scheme: str) -> bool:
    """Whether a calibrated method has a meaning for a scheme."""
    if method == "smoothquant":
        return SCHEMES[scheme].activations != "" and SCHEMES[scheme].weights.kind == "int"
    return scheme in INTEGER or method == "gptq"


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A step that was run: its outputs, and the processor time in seconds."""

    outputs: Mapping[str, Path]
    cpu_s: float


def run(
    step: str,
    inputs: Mapping[str, Path],
    params: Mapping[str, str | int],
    place: Path,
    *,
    threads: int,
    seed: str,
    isa: str | None,
) -> Ran:
    """Run `step` in a process of its own, as an engine would, but for the sandbox."""
    here = Path(tempfile.mkdtemp(dir=place, prefix=f"{step}-"))
    spec = STEPS[step]
    outputs = {name: here / "outputs" / name for name in spec.outputs}
    for folder in (*outputs.values(), here / "scratch"):
        folder.mkdir(parents=True)
    is_portable = spec.numerics == INHERIT
    events = os.open(here / "events", os.O_CREAT | os.O_WRONLY)
    circumstances = Circumstances(kernels=str(LIBRARY), threads=threads, isa=isa)
    request = StepRequest(
        step=step,
        params=dict(params),
        inputs={role: str(path) for role, path in inputs.items()},
        outputs={name: str(path) for name, path in outputs.items()},
        scratch=str(here / "scratch"),
        numerics=Numerics(cls="portable-1" if is_portable else "exact-1"),
        events_fd=events,
        circumstances=circumstances if is_portable else None,
    )
    (here / "request").write_bytes(request.encode())
    code = (
        f"import sys; from kolm_build.steps.{spec.module} import main; "
        "sys.exit(main(['step.py', sys.argv[1]]))"
    )
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(here / "request")],
        pass_fds=[events],
        env=environment(here, seed, threads),
        capture_output=True,
        text=True,
        check=False,
    )
    after = os.times()
    os.close(events)
    if done.returncode:
        said = (here / "events").read_text().splitlines()[-1:]
        raise SystemExit(f"{step} {dict(params)}: {said} {done.stderr[-2000:]}")
    used = after.children_user - before.children_user + after.children_system
    return Ran(outputs=outputs, cpu_s=used - before.children_system)


def environment(home: Path, seed: str, threads: int) -> dict[str, str]:
    """All that a process sees of its surroundings."""
    return {
        "HOME": str(home),
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "PATH": os.environ["PATH"],
        "PYTHONHASHSEED": seed,
        "PYTHONPATH": str(ROOT),
    }


def instruction_sets() -> list[str]:
    """Those that this machine has kernels for, the plainest first."""
    from kolm_build.numerics import portable

    portable.load(LIBRARY)
    return list(reversed(portable.isas()))


def digest_of(folder: Path) -> str:
    """The SHA-256 over every file below `folder` and its path."""
    found = sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(f"{path.relative_to(folder).as_posix()}\n{path.stat().st_size}\n".encode())
            found.update(path.read_bytes())
    return found.hexdigest()


def reference_text() -> str:
    """The text of Python's language reference that comes with every interpreter."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def perplexity_apart(model: Path) -> float:
    """`perplexity`, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, str(model), "--perplexity"],
        env=environment(Path.home(), "1", 2),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return float(done.stdout)


def perplexity(folder: Path) -> float:
    """The perplexity of reference text, in portable-1 and in the dtype of the model."""
    import torch

    from kolm_build.numerics.apply import applied
    from kolm_build.runtime.loading import load

    with (
        applied(Numerics(cls="portable-1"), Circumstances(kernels=str(LIBRARY), threads=2)),
        torch.no_grad(),
    ):
        model = load(folder)
        ids = model.chat.tokenizer.encode(reference_text()[:60_000], add_special_tokens=False).ids
        total = 0.0
        for at in range(0, WINDOWS * WINDOW, WINDOW):
            piece = torch.tensor([ids[at : at + WINDOW]])
            logits = model.network(piece).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="none")
            total += math.fsum(loss.tolist())
    return round(math.exp(total / (WINDOWS * (WINDOW - 1))), 4)


def calibration_of(options: argparse.Namespace, train: Path, place: Path) -> Path:
    """The folder of calibration rows: those of the data set, or reference text further on."""
    if options.calibration == "rows":
        return train
    folder = place / "calibration"
    folder.mkdir(exist_ok=True)
    text = reference_text()[200_000:]
    pieces = [text[at : at + 1500] for at in range(0, 1500 * options.calibration_rows, 1500)]
    rows = (
        {"group": "", "id": f"sha256:{sha256(one.encode()).hexdigest()}", "text": one}
        for one in pieces
    )
    (folder / "train.jsonl").write_bytes(b"".join(strict_json.dumps(row) + b"\n" for row in rows))
    return folder


def data_of(outputs_file: Path, store: Path, place: Path) -> dict[str, Path]:
    """The recipe's rows, as its build left them in `store` and noted in `outputs_file`."""
    outputs = tomllib.loads(outputs_file.read_text())["output"]
    trees = {(row["target"], row["output"]): row["tree"] for row in outputs}
    wanted = {
        "base": ("base-evaluation", "out"),
        "holdout": ("dataset", "holdout"),
        "train": ("dataset", "train"),
    }
    folders = {}
    for name, output in wanted.items():
        folders[name] = place / f"rows-{name}"
        if not folders[name].exists():
            got = ("get", trees[output], str(folders[name]), "--store", str(store))
            subprocess.run([sys.executable, "-m", "kolm_build", *got], check=True)
    return folders


def shown(row: Mapping[str, Any], full: Mapping[str, Any]) -> str:
    """One line of the table."""
    evaluation = row.get("evaluation")
    accuracy = "" if evaluation is None else f"{_accuracy(row):.1f} %"
    if evaluation is not None and row is not full:
        accuracy += f" ({_accuracy(row) - _accuracy(full):+.1f})"
    share = "" if row is full else f" ({row['perplexity'] / full['perplexity'] - 1:+.1%})"
    equal = {None: "", True: "equal", False: "DIFFER"}[row["equal"]]
    cells = (
        row["method"],
        row["scheme"],
        row["bits_per_weight"] or "",
        f"{row['tensor_bytes'] / 1e6:.1f}",
        accuracy,
        f"{row['perplexity']:.3f}{share}",
        row.get("k", ""),
        f"{row['cpu_s']:.0f}",
        equal,
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def _accuracy(row: Mapping[str, Any]) -> float:
    found: Mapping[str, int] = row["evaluation"]
    return 100 * found["correct"] / found["rows"]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a model folder in full precision")
    parser.add_argument("--schemes", nargs="+", default=sorted(SCHEMES), choices=sorted(SCHEMES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--embeddings", default="int8", choices=("keep", "int8", "int4"))
    parser.add_argument("--group", type=int, default=0, help="0 for the rule of QUANT-2")
    parser.add_argument("--calibration", default="rows", choices=("rows", "text"))
    parser.add_argument("--calibration-rows", type=int, default=128, help="as [quantise] (128)")
    parser.add_argument("--calibration-length", type=int, default=512, help="as [quantise] (512)")
    parser.add_argument("--recipe", type=Path, default=EXAMPLE, help="the folder of kolm.toml")
    parser.add_argument("--outputs", type=Path, help="what its build noted")
    parser.add_argument("--store", type=Path, default=ROOT / "store", help="where it was built")
    parser.add_argument("--place", type=Path, default=PLACE, help="rows that are made stay here")
    parser.add_argument(
        "--second-isa", metavar="ISA", help="of the second time (default: the plainest here)"
    )
    parser.add_argument("--once", action="store_true", help="do not build a second time")
    parser.add_argument("--no-rows", action="store_true", help="perplexity alone")
    parser.add_argument(
        "--perplexity", action="store_true", help="of this folder, and nothing else"
    )
    options = parser.parse_args()
    if options.no_rows and options.calibration == "rows":
        parser.error("--no-rows leaves no rows to calibrate with: --calibration text")
    return options


def main() -> int:
    options = parsed()
    if options.perplexity:
        print(perplexity(options.model))
        return 0
    options.place.mkdir(parents=True, exist_ok=True)
    outputs = options.outputs or ROOT / "lockfiles" / f"{options.recipe.resolve().name}.outputs"
    data = {} if options.no_rows else data_of(outputs, options.store, options.place)
    train = data.get("train", options.place)
    data["calibration"] = calibration_of(options, train, options.place)
    table = Table(
        model=options.model,
        place=options.place,
        data=data,
        pipeline=pipeline_of(options.recipe),
        options=options,
    )
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    full: Mapping[str, Any] | None = None
    differ = False
    for row in table.rows():
        full = full or row
        print(shown(row, full), flush=True)
        differ = differ or row["equal"] is False
    return 1 if differ else 0


if __name__ == "__main__":
    started = time.monotonic()
    status = main()
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    sys.exit(status)
