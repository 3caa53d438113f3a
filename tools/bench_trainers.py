"""What a stage of ours costs beside TRL's own trainer, with the same settings on the same kernels.

    python tools/bench_trainers.py

Both fine-tune one Llama (4 layers, hidden size 256, LoRA on every linear layer) on the tiny
example's rows under portable-1, one thread. Ours computes each row alone and notes a trace; TRL's
SFTTrainer pads rows and computes them together. Process CPU time of the training loop and the
greatest resident memory of the process; medians of interleaved pairs, each run a process.
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

OURS, THEIRS = "ours", "trl"
NUMERICS = Numerics(cls="portable-1", seed=1)
STEPS, BATCH = 12, 8


def model_folder(root: Path) -> Path:
    """A model four layers deep and 256 wide, made by the tiny example's formula."""
    module = example(TINY / "model.py")
    vars(module).update(HIDDEN=256, INTERMEDIATE=704, LAYERS=4)
    (root / "model").mkdir()
    module.run({}, root / "model", {})
    return root / "model"


def run(side: str, root: Path) -> None:
    """Train on one side and print what it took."""
    from kolm_build.numerics.apply import applied
    from kolm_build.steps import sft
    from kolm_build.steps._stage import Stage
    from tests.steps_ml.calling import write_rows

    rows = [json.loads(line) for line in tiny_rows(root / "rows").read_text().splitlines()]
    pairs = [(one["text"], one["ward"]) for one in rows]
    request = StepRequest(
        step="sft",
        params={"compute_dtype": "fp32", "max_steps": STEPS, "batch_size": BATCH},
        inputs={
            "model": str(model_folder(root)),
            "train": str(write_rows(root / "train", "train.jsonl", pairs)),
        },
        outputs={},
        scratch=str(root),
        numerics=NUMERICS,
        events_fd=1,
        circumstances=Circumstances(kernels=str(LIBRARY), threads=1),
    )
    stage = Stage.parse(request.params, sft.TAKE)
    with applied(NUMERICS, request.circumstances):
        used_s = _ours(request, stage) if side == OURS else _theirs(request, stage)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"cpu_s": used_s, "peak_mib": peak}))


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


def measure(side: str) -> dict[str, float]:
    """What one run of `side` took, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--side", side],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    """Print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="pairs of runs")
    parser.add_argument("--side", choices=(OURS, THEIRS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        warnings.simplefilter("ignore")
        with tempfile.TemporaryDirectory() as root:
            run(args.side, Path(root))
        return 0
    found = [{side: measure(side) for side in (OURS, THEIRS)} for _ in range(args.pairs)]
    for what, unit in (("cpu_s", "s"), ("peak_mib", "MiB")):
        sides = {
            side: statistics.median(pair[side][what] for pair in found) for side in (OURS, THEIRS)
        }
        ratio = statistics.median(pair[OURS][what] / pair[THEIRS][what] for pair in found)
        print(
            f"{what:<9} ours {sides[OURS]:.2f} {unit}, trl {sides[THEIRS]:.2f} {unit}: {ratio:.2f}x"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
