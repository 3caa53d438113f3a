"""Train with every federated method, twice, and compare the bytes.

`python tools/federated.py [METHOD…]` lets three sites train two rounds of the tiny example with
each method, in two processes that differ in PYTHONHASHSEED, threads, instruction set, folder and
the order of the sites. It prints one line a method, and fails where the two give other bytes, where
the loss did not fall, or where the bytes are not those of examples/federated/golden.json.

The steps are those that `kolm federated` runs, in one process without a sandbox; seeds of masks and
noise are fixed here, and secret there.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from kolm_build.core.digest import Digest
from kolm_build.core.federated.plan import FACTORING, METHODS, FederationPlan
from kolm_build.core.federated.round import FILE, Opening, Round, Site
from kolm_build.core.federated.sealed import KEYS, SECRET, Secret, Unsealing
from kolm_build.core.federated.submission import update_params
from kolm_build.core.numerics import Numerics
from kolm_build.core.request import Circumstances, StepRequest
from kolm_build.numerics.kernels import LIBRARY
from kolm_build.steps.table import INHERIT, STEPS

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "examples" / "federated" / "tiny"
GOLDEN = TINY.parent / "golden.json"
DOCUMENT = ROOT / "docs" / "federated.md"
BEGIN, END = "<!-- begin: tools/federated.py -->\n", "<!-- end -->\n"
ROUNDS = 2

WAYS = (
    {"hash_seed": "1", "threads": "1", "isa": "", "reverse": ""},
    {"hash_seed": "4711", "threads": "2", "isa": "avx2", "reverse": "yes"},
)

SGD = {
    "optimiser": "sgd",
    "schedule": "constant",
    "max_grad_norm": "0",
    "weight_decay": "0",
    "learning_rate": "0.3",
}
CHANGES: Mapping[str, Mapping[str, str | bool]] = {
    "dp-fed-avg": {"noise_multiplier": "0.0005", "weight": "equal", "clip": "4"},
    "fed-avgm": {"server_rate": "0.5"},
    "fed-adam": {"server_rate": "0.01"},
    "fed-yogi": {"server_rate": "0.01"},
    "fed-adagrad": {"server_rate": "0.01"},
    "fed-dyn": {"mu": "0.1"},
    "flora": {"masks": False},
    "flex-lora": {"masks": False},
}
"""What a method's plan has that the example's has not."""
TRAINING: Mapping[str, Mapping[str, str]] = {"fed-dyn": SGD, "scaffold": SGD}
"""What its training has."""


def seed(text: str) -> bytes:
    return sha256(text.encode()).digest()


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Runs steps in this process.

    Attributes:
        place: Where their folders go.
        threads: Compute threads.
        isa: Instruction set; the best where it is empty.
    """

    place: Path
    threads: int
    isa: str

    def run(
        self, step: str, inputs: Mapping[str, Path], params: Mapping[str, str | int]
    ) -> Mapping[str, Path]:
        """The folders of the outputs of a step."""
        spec = STEPS[step]
        folder = self.place / f"{len(list(self.place.iterdir()))}-{step}"
        outputs = {name: folder / "outputs" / name for name in spec.outputs}
        for one in (*outputs.values(), folder / "scratch"):
            one.mkdir(parents=True)
        portable = spec.numerics == INHERIT
        with (folder / "events").open("wb") as events:
            request = StepRequest(
                step=step,
                params=params,
                inputs={role: str(path) for role, path in inputs.items()},
                outputs={name: str(path) for name, path in outputs.items()},
                scratch=str(folder / "scratch"),
                numerics=Numerics(cls="portable-1" if portable else "exact-1", seed=1),
                events_fd=events.fileno(),
                circumstances=Circumstances(
                    kernels=str(LIBRARY), threads=self.threads, isa=self.isa or None
                )
                if portable
                else None,
            )
            (folder / "request").write_bytes(request.encode())
            module = importlib.import_module(f"kolm_build.steps.{spec.module}")
            status = module.main(["step.py", str(folder / "request")])
        if status:
            sys.exit(f"{step}: {(folder / 'events').read_text()[-600:]}")
        return outputs

    def folder(self, files: Mapping[str, bytes]) -> Path:
        """A new folder with these files."""
        made = Path(tempfile.mkdtemp(dir=self.place))
        for name, data in files.items():
            (made / name).write_bytes(data)
        return made


@dataclass(frozen=True, kw_only=True)
class Given:
    """What every federation here has: a model, and each site's training rows."""

    model: Path
    train: Mapping[str, Path]
    sites: Sequence[str]


def given(bench: Bench, *, reverse: bool) -> Given:
    script = {"script": bench.folder({"model.py": (ROOT / "examples/tiny/model.py").read_bytes()})}
    made = bench.run("script", script, {"entry": "model.py"})["out"]
    model = bench.run("import-model", {"source": made}, {"dtype": "fp32"})["out"]
    names = sorted(path.parent.name for path in TINY.glob("*/rows.jsonl"))
    train = {}
    for name in names:
        recipe = tomllib.loads((TINY / name / "kolm.toml").read_text())
        (node,) = [one for one in recipe["step"] if one["step"] == "dataset"]
        rows = bench.folder({"rows.jsonl": (TINY / name / "rows.jsonl").read_bytes()})
        train[name] = bench.run("dataset", {"rows": rows}, node["params"])["train"]
    return Given(model=model, train=train, sites=names[::-1] if reverse else names)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a method made of the sites' rows.

    Attributes:
        method: Its name.
        digest: Of all that the last round gave.
        losses: The sites' mean first loss, round by round.
    """

    method: str
    digest: str
    losses: Sequence[float]


def plan_of(method: str) -> FederationPlan:
    value = tomllib.loads((TINY / "federation.toml").read_text())["plan"]
    training = value["training"] | {"epochs": 2} | TRAINING.get(method, {})
    changes = CHANGES.get(method, {})
    return FederationPlan.from_value(
        {"v": 1, **value, "method": method, **changes, "training": training}
    )


class Federation:
    """Three sites and a server in one process, with seeds that are no secret."""

    def __init__(self, bench: Bench, with_: Given, plan: FederationPlan) -> None:
        self.bench, self.given, self.plan = bench, with_, plan
        training = dict(plan.training)
        params = {name: training[name] for name in ("lora_r", "lora_alpha")}
        self.model = with_.model
        begun = bench.run("federated-start", {"model": self.model}, params)
        self.adapter, self.state = begun["adapter"], begun["state"]
        self.control: dict[str, Path] = {}
        self.losses: list[list[float]] = []

    def record(self, number: int) -> Round:
        """The record of the round `number`."""
        opening = Opening(
            number=number,
            nonce=seed(f"nonce {number}"),
            previous=Digest(seed("previous")) if number > 1 else None,
            base=Digest(seed("base")),
            adapter=Digest(seed("adapter")),
            state=Digest(seed("state")),
            plan=self.plan,
        )
        rows = {
            name: len((folder / "train.jsonl").read_bytes().splitlines())
            for name, folder in self.given.train.items()
        }
        sites = [
            Site(
                name=name,
                key=seed(f"key {name}"),
                rows=rows[name],
                agreement=seed(f"agreement {name}"),
                mask=seed(f"mask {name}"),
                commitment=seed(f"commitment {name}"),
            )
            for name in sorted(rows)
        ]
        return Round(opening=opening, sites=tuple(sites))

    def round(self, number: int) -> Mapping[str, Path]:
        """What the round `number` gives: every site trains, and its updates are added."""
        record, sent, losses = self.record(number), {}, []
        for name in self.given.sites:
            inputs = {
                "model": self.model,
                "train": self.given.train[name],
                "global": self.adapter,
                "state": self.state,
            }
            if name in self.control:
                inputs["control"] = self.control[name]
            made = self.bench.run("federated-update", inputs, update_params(self.plan))
            if self.plan.method in ("scaffold", "fed-dyn"):
                self.control[name] = made["control"]
            card = json.loads((made["card"] / "card.json").read_text())
            losses.append(float(card["loss_first"]))
            sent[f"site-{name}"] = self.sealed(record, name, made["update"])
        self.losses.append(losses)
        return self.aggregate(record, sent)

    def sealed(self, record: Round, name: str, update: Path) -> Path:
        """What the site `name` sends: its update, masked where the method masks."""
        if self.plan.method in FACTORING:
            return update
        others = [one.name for one in record.sites if one.name != name]
        secret = Secret(
            pairs={peer: seed(" ".join(sorted((name, peer)))) for peer in others},
            own=seed(f"own {name}"),
            noise=seed(f"noise {name}") if self.plan.has_noise else None,
        )
        inputs = {
            "update": update,
            "global": self.adapter,
            "round": self.bench.folder({FILE: record.encode()}),
            "secret": self.bench.folder({SECRET: secret.encode()}),
        }
        return self.bench.run("federated-seal", inputs, {"site": name})["out"]

    def aggregate(self, record: Round, sent: Mapping[str, Path]) -> Mapping[str, Path]:
        """What comes of all that was sent."""
        names = tuple(one.name for one in record.sites)
        own = {name: seed(f"own {name}") for name in names} if self.plan.masks else {}
        unsealing = Unsealing(survivors=names, own=own, pairs={})
        inputs = {
            "round": self.bench.folder({FILE: record.encode()}),
            "unsealing": self.bench.folder({KEYS: unsealing.encode()}),
            "global": self.adapter,
            "state": self.state,
            **sent,
        }
        made = self.bench.run("federated-aggregate", inputs, {})
        self.state = made["state"]
        if self.plan.method == "flora":
            merged = {"model": self.model, "adapter": made["adapter"]}
            self.model = self.bench.run("merge", merged, {})["out"]
        else:
            self.adapter = made["adapter"]
        return made


def run_one(bench: Bench, with_: Given, method: str) -> Outcome:
    """What the rounds of a method come to."""
    federation = Federation(bench, with_, plan_of(method))
    *_, made = [federation.round(number) for number in range(1, ROUNDS + 1)]
    digest = sha256()
    for name in ("adapter", "state", "summary"):
        for path in sorted(made[name].iterdir()):
            digest.update(path.name.encode() + sha256(path.read_bytes()).digest())
    means = [sum(losses) / len(losses) for losses in federation.losses]
    return Outcome(method=method, digest=digest.hexdigest(), losses=means)


def serve(methods: Sequence[str], way: Mapping[str, str]) -> None:
    """Run the methods one way; a line of JSON each."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(place=Path(place), threads=int(way["threads"]), isa=way["isa"])
        with_ = given(bench, reverse=bool(way["reverse"]))
        for method in methods:
            print(json.dumps(asdict(run_one(bench, with_, method))), flush=True)


def run_way(methods: Sequence[str], way: Mapping[str, str]) -> dict[str, Outcome]:
    done = subprocess.run(
        [sys.executable, __file__, *methods, "--serve", json.dumps(way)],
        env={
            "HOME": tempfile.gettempdir(),
            "PATH": os.environ["PATH"],
            "PYTHONHASHSEED": way["hash_seed"],
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": way["threads"],
            "OMP_WAIT_POLICY": "PASSIVE",
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return {one.method: one for one in (Outcome(**json.loads(line)) for line in lines)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="these only")
    parser.add_argument("--write", action="store_true", help="write the table and golden.json")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    methods = args.methods or list(METHODS)
    if args.serve:
        serve(methods, json.loads(args.serve))
        return 0
    first, second = (run_way(methods, way) for way in WAYS)
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() and not args.write else {}
    bad = 0
    for method in methods:
        trouble = troubles(first[method], second[method], golden.get(method))
        bad += bool(trouble)
        told = " -> ".join(f"{loss:.4f}" for loss in first[method].losses)
        print(f"{method:<12} {trouble or 'same bytes'}  {told}  {first[method].digest[:16]}")
    if args.write and not bad:
        write(first)
    return int(bad > 0)


def troubles(one: Outcome, other: Outcome, golden: str | None) -> str:
    if one.digest != other.digest:
        return "OTHER BYTES"
    if one.losses[-1] >= one.losses[0]:
        return "NOTHING LEARNT"
    return "NOT THE GOLDEN BYTES" if golden not in (None, one.digest) else ""


def write(found: Mapping[str, Outcome]) -> None:
    """Note the bytes, and put the table into the document."""
    golden = {method: one.digest for method, one in found.items()}
    GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    lines = ["| method | sites' first loss, round by round | digest |", "| --- | --- | --- |"]
    for method, one in found.items():
        losses = " → ".join(f"{loss:.4f}" for loss in one.losses)
        lines.append(f"| {method} | {losses} | `{one.digest[:16]}` |")
    head, rest = DOCUMENT.read_text().split(BEGIN)
    _, tail = rest.split(END)
    body = "".join(f"{line}\n" for line in lines)
    DOCUMENT.write_text(head + BEGIN + body + END + tail)


if __name__ == "__main__":
    sys.exit(main())
