"""Train a small model for its rounding, and say how far every way of rounding leads from it.

`python tools/qat_table.py` takes the first stage of examples/algorithms/qat.toml and rounds what it
makes to w4a16: as it is by every method, and after each of several further trainings on the same
rows. Every row of the table is a recipe that `kolm build` could build; what is made stays in
build/algorithms, so the table may be stopped and gone on with. The models are compared on held-out
rows, in portable-1. The table is that of docs/quantisation.md, section "Trained for it".
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kolm_build.core.derivation import Input, OutputInput
from kolm_build.core.digest import Digest
from kolm_build.core.instantiation.instance import Instance
from kolm_build.core.numerics import PORTABLE, Numerics
from kolm_build.core.recipe import parse_recipe
from kolm_build.core.request import Circumstances
from kolm_build.numerics.kernels import LIBRARY
from tools.algorithms import EXAMPLES, WAYS, Maker, Server, instance_of

Table = Mapping[str, str | int]
"""A table of a recipe."""

SCHEME = "w4a16"
BASE, ROWS, FIRST, STAGE = "real-text", "wordings", "train-1", "train-2"
"""The stage that makes the model and the set it reads, by name; two nodes."""

COMMON: Table = {
    "from": BASE,
    "rows": ROWS,
    "compute_dtype": "fp32",
    "max_steps": 130,
    "batch_size": 8,
}
SFT: Table = {**COMMON, "algorithm": "sft", "learning_rate": "0.0001"}
KD: Table = {
    **SFT,
    "algorithm": "kd",
    "teacher": BASE,
    "hard_weight": "0",
    "temperature": "1",
}
ROUNDING: Table = {"rounding": SCHEME}
QAT: Table = {"adapter": "qat", **ROUNDING}
QAT_LORA: Table = {"adapter": "qat-lora", "learning_rate": "0.0005", **ROUNDING}
FULL: Table = {"adapter": "full"}

NEAREST = "rtn"
CALIBRATION: Table = {"calibration": ROWS, "calibration_rows": 924}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to a rounded model.

    Attributes:
        name: For the table.
        method: How it is rounded.
        stage: The training before that, if there is one.
        seeds: The seeds of that training, a model each.
    """

    name: str
    method: str = NEAREST
    stage: Table | None = None
    seeds: Sequence[int] = (1,)

    def instances(self) -> Iterator[Instance]:
        """The derivations of each of its models."""
        instance = instance_of(parse_recipe(self._recipe(), file="qat.toml"))
        for seed in self.seeds:
            yield seeded(instance, seed)

    def _recipe(self) -> str:
        """The example up to its first stage, what this one adds, and the rest of the example."""
        before, first, *_, last = (EXAMPLES / "qat.toml").read_text("utf-8").split("[[train]]")
        stage = section("[[train]]", self.stage) if self.stage else ""
        calibration = {} if self.method == NEAREST else CALIBRATION
        rounding = {"scheme": SCHEME, "method": self.method, **calibration}
        rest = last[last.index("[evaluate]") :]
        return f"{before}[[train]]{first}{stage}{section('[quantise]', rounding)}{rest}"


KEPT = (
    Candidate(name="rounded to nearest"),
    Candidate(name="AWQ, the 924 rows", method="awq"),
    Candidate(name="GPTQ, the 924 rows", method="gptq"),
    Candidate(name="`full`, then to nearest", stage={**KD, **FULL}),
    Candidate(name="`qat-lora`, then merged and to nearest", stage={**KD, **QAT_LORA}),
    Candidate(name="`qat`, seeds 1, 2, 3, then to nearest", stage={**KD, **QAT}, seeds=(1, 2, 3)),
)
"""What the model before rounding is kept by."""

LEARNT = (
    Candidate(name="`sft` with `full`, then to nearest", stage={**SFT, **FULL}),
    Candidate(name="`sft` with `qat`, then to nearest", stage={**SFT, **QAT}),
)
"""What learns another model, which only the rows can judge."""


def section(title: str, table: Table) -> str:
    """A table of a recipe as TOML; text and whole numbers are written as in JSON."""
    lines = (f"{key} = {json.dumps(value)}" for key, value in table.items())
    return "\n".join((title, *lines, "", ""))


def seeded(instance: Instance, seed: int) -> Instance:
    """`instance` with another seed for what the last stage does, and all that follows from it."""
    nodes, moved = {}, dict[Digest, Digest]()
    for name, before in instance.nodes.items():
        inputs = tuple((role, redirected(one, moved)) for role, one in before.inputs)
        numerics = replace(before.numerics, seed=seed) if name == STAGE else before.numerics
        nodes[name] = replace(before, inputs=inputs, numerics=numerics)
        moved[instance.digests[name]] = nodes[name].digest
    digests = {name: moved[digest] for name, digest in instance.digests.items()}
    return replace(instance, nodes=nodes, digests=digests)


def redirected(one: Input, moved: Mapping[Digest, Digest]) -> Input:
    """An input, of the derivation that stands in place of the one it names."""
    if isinstance(one, OutputInput):
        return replace(one, derivation=moved[one.derivation])
    return one


@dataclass(frozen=True, kw_only=True)
class Distance:
    """What a model gives on the held-out rows, each a mean over their tokens.

    Attributes:
        divergence: KL of the model from the one before, nats.
        agreement: Share of the tokens for which both find the same one likeliest.
        nll: Negative log-likelihood, nats.
    """

    divergence: float
    agreement: float
    nll: float


@dataclass(frozen=True, kw_only=True)
class Exam:
    """Held-out rows, and what the model before rounding says of them.

    Attributes:
        sequences: The rows, as `Continuation`.
        wanted: Log-probabilities at each, shape (tokens, vocabulary), float32.
        weights: How many weights the model before has.
    """

    sequences: Sequence[Any]
    wanted: Sequence[Any]
    weights: int

    @classmethod
    def of(cls, folder: Path, holdout: Path) -> Exam:
        """The exam on the rows in `holdout` for what comes of the model in `folder`."""
        import torch

        from kolm_build.runtime.loading import load
        from kolm_build.steps._sequences import Tokeniser

        model = load(folder, dtype=torch.float32)
        tokeniser = Tokeniser(model=model, max_length=model.window)
        sequences = [
            tokeniser.sequence(row["messages"], row["answer"], row["id"])
            for row in map(json.loads, lines_of(holdout / "holdout.jsonl"))
        ]
        wanted = [said for said, _ in spoken(model, sequences)]
        weights = sum(one.numel() for one in model.network.parameters())
        return cls(sequences=sequences, wanted=wanted, weights=weights)

    @property
    def tokens(self) -> int:
        """How many tokens are compared."""
        return sum(one.tokens for one in self.sequences)

    def distance(self, folder: Path) -> Distance:
        """How far the model in `folder` is from the one before."""
        import torch

        from kolm_build.runtime.loading import load

        model = load(folder, dtype=torch.float32)
        said = zip(self.wanted, spoken(model, self.sequences), strict=True)
        columns = zip(*(compared(before, *after) for before, after in said), strict=True)
        divergence, agreement, nll = (
            math.fsum(torch.cat(column).tolist()) / self.tokens for column in columns
        )
        return Distance(divergence=divergence, agreement=agreement, nll=nll)


def spoken(model: Any, sequences: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Log-probabilities of `model` after each prompt, (tokens, vocabulary), and the tokens' ids."""
    import torch

    from kolm_build.steps._sequences import answer_logits

    for sequence in sequences:
        with torch.no_grad():
            logits, ids = answer_logits(model.network, sequence)
        yield logits.log_softmax(-1), ids


def compared(before: Any, after: Any, ids: Any) -> tuple[Any, Any, Any]:
    """KL, agreement and NLL of two models at each of the tokens `ids`, shape (tokens,)."""
    divergence = (before.exp() * (before - after)).sum(-1)
    agreement = before.argmax(-1) == after.argmax(-1)
    return divergence, agreement, -after.gather(-1, ids[:, None])[:, 0]


def lines_of(path: Path) -> Sequence[str]:
    return path.read_text("utf-8").splitlines()


@contextmanager
def made() -> Iterator[Maker]:
    """What makes models, while a process serves it."""
    server = Server(way=WAYS[0])
    try:
        yield Maker(server=server)
    finally:
        server.close()


def models_of(candidate: Candidate, maker: Maker) -> Sequence[Path]:
    """The rounded models of `candidate`, made first where they are not there."""
    found = []
    for instance in candidate.instances():
        print(f"{candidate.name}: {instance.digests['quantise']}", file=sys.stderr)
        found.append(maker.inputs(instance, instance.nodes["evaluation"])["model"])
    return found


def exam_of(maker: Maker) -> Exam:
    """The exam for what comes of the first stage's model."""
    instance = next(KEPT[0].instances())
    model = maker.inputs(instance, instance.nodes["full-evaluation"])["model"]
    train = maker.inputs(instance, instance.nodes[FIRST])["train"]
    exam = Exam.of(model, train.parent / "holdout")
    print(f"{exam.weights:,} weights, which have read {len(lines_of(train / 'train.jsonl'))} rows")
    print(f"{len(exam.sequences)} held-out rows, {exam.tokens:,} tokens\n")
    return exam


def line(name: str, found: Sequence[Distance]) -> str:
    """A line of the table."""
    divergence = ", ".join(f"{one.divergence:.4f}" for one in found)
    agreement = ", ".join(f"{100 * one.agreement:.1f}" for one in found)
    return f"| {name} | {divergence} | {agreement} % |"


def tell(maker: Maker) -> None:
    """Make and compare every model, and print what it gives."""
    exam = exam_of(maker)
    print("| how | KL from the unrounded model, a token | same likeliest token |\n|---|---|---|")
    for candidate in KEPT:
        print(
            line(candidate.name, [exam.distance(one) for one in models_of(candidate, maker)]),
            flush=True,
        )
    for candidate in LEARNT:
        found = [exam.distance(one) for one in models_of(candidate, maker)]
        print(f"\n{candidate.name}: NLL {found[0].nll:.4f}", flush=True)


def main() -> int:
    """The exit status."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    from kolm_build.numerics.apply import applied

    circumstances = Circumstances(kernels=str(LIBRARY), threads=1)
    with made() as maker, applied(Numerics(cls=PORTABLE), circumstances):
        tell(maker)
    return 0


if __name__ == "__main__":
    sys.exit(main())
