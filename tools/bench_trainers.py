"""What a stage of ours costs beside TRL's own trainer, with the same settings on the same kernels.

    python tools/bench_trainers.py
    python tools/bench_trainers.py --model FOLDER --rows train.jsonl --steps 3 --pairs 3

Both fine-tune one model with LoRA on every linear layer under portable-1, one thread, batches of
eight: a Llama of 4 layers and width 256 on the tiny example's rows, or FOLDER on the rows that a
dataset step wrote. Ours computes each row alone and notes a trace; TRL's SFTTrainer pads rows and
computes them together. Settings, rows, their order, adapter and optimiser are the same.

TRL's runs twice: `trl` under the guard, whose class fills new memory with NaN before it is used
(NUM-125), which its large scratch tiles pay for; `bare` on the same kernels without the guard and
without that. Process CPU time of the training loop and the greatest resident memory of the
process; medians of rounds in which the sides take turns, each run a process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kolm_build.core.numerics import Numerics  # noqa: E402 -- the checkout's own
from kolm_build.core.request import Circumstances, StepRequest  # noqa: E402
from kolm_build.numerics.kernels import LIBRARY  # noqa: E402
from tests.support.models import TINY, example, tiny_rows  # noqa: E402

if TYPE_CHECKING:
    from kolm_build.steps._stage import Stage

OURS, THEIRS, BARE = SIDES = ("ours", "trl", "bare")
NUMERICS = Numerics(cls="portable-1", seed=1)
HERE = Circumstances(kernels=str(LIBRARY), threads=1)
BATCH = 8


def model_folder(root: Path) -> Path:
    """A model four layers deep and 256 wide, made by the tiny example's formula."""
    module = example(TINY / "model.py")
    vars(module).update(HIDDEN=256, INTERMEDIATE=704, LAYERS=4)
    (root / "model").mkdir()
    module.run({}, root / "model", {})
    return root / "model"


def rows_folder(root: Path, rows: Path | None) -> Path:
    """A folder of train.jsonl: that of `rows`, or the tiny example's rows."""
    from tests.steps_ml.calling import write_rows

    if rows is not None:
        return rows.parent
    lines = [json.loads(line) for line in tiny_rows(root / "rows").read_text().splitlines()]
    pairs = [(one["text"], one["ward"]) for one in lines]
    write_rows(root / "train", "train.jsonl", pairs)
    return root / "train"


def run(args: argparse.Namespace, root: Path) -> None:
    """Train on one side and print what it took."""
    from kolm_build.steps import sft
    from kolm_build.steps._stage import Stage

    request = StepRequest(
        step="sft",
        params={"compute_dtype": "fp32", "max_steps": args.steps, "batch_size": BATCH},
        inputs={
            "model": str(args.model or model_folder(root)),
            "train": str(rows_folder(root, args.rows)),
        },
        outputs={},
        scratch=str(root),
        numerics=NUMERICS,
        events_fd=1,
        circumstances=HERE,
    )
    stage = Stage.parse(request.params, sft.TAKE)
    with arithmetic(args.side):
        used_s = _ours(request, stage) if args.side == OURS else _theirs(request, stage)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"cpu_s": used_s, "peak_mib": peak}))


@contextmanager
def arithmetic(side: str) -> Iterator[None]:
    """The portable kernels; under the guard, but for `BARE`."""
    import torch

    from kolm_build.numerics import native, portable
    from kolm_build.numerics.apply import applied

    if side != BARE:
        with applied(NUMERICS, HERE):
            yield
        return
    native.set_threads(HERE.threads)
    native.seed(NUMERICS.seed)
    portable.activate()
    torch.utils.deterministic.fill_uninitialized_memory = False
    yield


def _ours(request: StepRequest, stage: Stage) -> float:
    from kolm_build.steps import _stage
    from kolm_build.steps._entry import Events
    from kolm_build.steps._trainer import AnswerTrainer

    used: list[float] = []
    whole = AnswerTrainer.train

    def timed(self: AnswerTrainer, *args: object) -> object:
        start = time.process_time()
        try:
            return whole(self, *args)
        finally:
            used.append(time.process_time() - start)

    AnswerTrainer.train = timed
    with Path(os.devnull).open("w") as deaf:
        _stage.train(request, Events(deaf.fileno()), stage)
    return used[0]


def _theirs(request: StepRequest, stage: Stage) -> float:
    from datasets import Dataset
    from trl import SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from kolm_build.runtime.loading import load
    from kolm_build.steps import sft
    from kolm_build.steps._conversations import read_conversations
    from kolm_build.steps._sequences import Tokeniser
    from kolm_build.steps._stage import _processing, sft_config

    model = load(Path(request.inputs["model"]), dtype=stage.change.load_dtype(stage.training))
    rows = read_conversations(Path(request.inputs["train"]) / "train.jsonl")
    examples = sft.tokenise(Tokeniser(model=model, max_length=1024), rows)
    columns = stage.objective.columns(examples)
    trainer = SFTTrainer(
        model=stage.change.attach(model.network),
        args=sft_config(stage.training, request.numerics, Path(request.scratch)),
        data_collator=DataCollatorForLanguageModeling(pad_token_id=model.chat.end_id),
        train_dataset=Dataset.from_dict(dict(columns)),
        processing_class=_processing(model),
    )
    start = time.process_time()
    trainer.train()
    return time.process_time() - start


def measure(side: str, options: list[str]) -> dict[str, float]:
    """What one run of `side` took, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--side", side, *options],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def show(found: list[dict[str, dict[str, float]]]) -> None:
    """Print medians, and medians of the rounds' ratios."""
    for what, unit in (("cpu_s", "s"), ("peak_mib", "MiB")):
        for side in SIDES:
            middle = statistics.median(one[side][what] for one in found)
            ratio = statistics.median(one[OURS][what] / one[side][what] for one in found)
            print(f"{what:<9} {side:<5} {middle:8.2f} {unit:<4} ours takes {ratio:.2f}x")


def main() -> int:
    """Print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="rounds of runs")
    parser.add_argument("--steps", type=int, default=12, metavar="N", help="optimiser steps")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="the model to train")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="its rows: a train.jsonl")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rows is not None and args.rows.name != "train.jsonl":
        parser.error("--rows is a file train.jsonl, as a dataset step writes it")
    if args.side:
        warnings.simplefilter("ignore")
        with tempfile.TemporaryDirectory() as root:
            run(args, Path(root))
        return 0
    options = ["--steps", str(args.steps)]
    for name in ("model", "rows"):
        if getattr(args, name) is not None:
            options += [f"--{name}", str(getattr(args, name).resolve())]
    show([{side: measure(side, options) for side in SIDES} for _ in range(args.pairs)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
