"""Train with every algorithm of the catalogue, twice, and compare the bytes.

`python tools/algorithms.py [NAME…]` reads examples/algorithms/NAME.toml, makes what the stage that
uses the algorithm needs once, and runs that stage in two processes that differ in PYTHONHASHSEED,
threads, instruction set and folder; the second one in two segments, put aside halfway and gone on
with, where the catalogue says that this can be. It prints one line an algorithm, and fails where
two runs give other bytes, trace or metrics, where nothing was learnt, or where the bytes are not
those of golden.json beside the recipes.

Every stage is the derivation that `kolm build` would make of the recipe, but one process imports
the frameworks and forks for each, so that all take minutes and not hours; nothing is sandboxed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from kolm_build.core.catalogue.table import ALGORITHMS
from kolm_build.core.derivation import ContentInput, Derivation
from kolm_build.core.digest import Digest
from kolm_build.core.instantiation.instance import Instance
from kolm_build.core.instantiation.instantiate import instantiate
from kolm_build.core.lock import VERSION as LOCK_VERSION
from kolm_build.core.numerics import PORTABLE
from kolm_build.core.recipe import Recipe, parse_recipe
from kolm_build.core.request import Circumstances, StepRequest
from kolm_build.core.source import PATH
from kolm_build.numerics.kernels import LIBRARY
from kolm_build.steps.table import STEPS

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "algorithms"
GOLDEN = EXAMPLES / "golden.json"
PLACE = ROOT / "build" / "algorithms"
DOCUMENT = ROOT / "docs" / "algorithms.md"
BEGIN, END = "<!-- begin: tools/algorithms.py -->\n", "<!-- end -->\n"

AXES = ("adapter", "optimiser")
TRACES = ("trace", "metrics")
"""Outputs that are not what was trained."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a process runs its steps, which must change no byte."""

    name: str
    hash_seed: str
    threads: int
    isa: str | None
    segments: bool


AVX2 = "avx2" if " avx2 " in Path("/proc/cpuinfo").read_text() else None

WAYS = (
    Way(name="first", hash_seed="1", threads=1, isa=None, segments=False),
    Way(name="second", hash_seed="4711", threads=2, isa=AVX2, segments=True),
)


@dataclass(kw_only=True)
class Server:
    """A process that has the frameworks imported and forks for every step."""

    way: Way
    process: subprocess.Popen[str] = field(init=False)
    asked: IO[str] = field(init=False)
    answers: IO[str] = field(init=False)

    def __post_init__(self) -> None:
        environment = {
            "HOME": str(PLACE),
            "OMP_NUM_THREADS": str(self.way.threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "PATH": os.environ["PATH"],
            "PYTHONHASHSEED": self.way.hash_seed,
            "PYTHONPATH": str(ROOT),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.asked, self.answers = self.process.stdin, self.process.stdout

    def run(self, derivation: Derivation, inputs: Mapping[str, Path], place: Path) -> Ran:
        """Run the step of `derivation` in the folder `place`."""
        shutil.rmtree(place, ignore_errors=True)
        outputs = {name: place / "outputs" / name for name, _ in derivation.outputs}
        for folder in (*outputs.values(), place / "scratch"):
            folder.mkdir(parents=True)
        request = StepRequest(
            step=derivation.step,
            params=dict(derivation.params),
            inputs={role: str(path) for role, path in inputs.items()},
            outputs={name: str(path) for name, path in outputs.items()},
            scratch=str(place / "scratch"),
            numerics=derivation.numerics,
            events_fd=EVENTS_FD,
            circumstances=self._circumstances(derivation),
        )
        (place / "request").write_bytes(request.encode())
        said = self._ask({"module": STEPS[derivation.step].module, "place": str(place)})
        return Ran(status=said["status"], cpu_s=said["cpu_s"], place=place, outputs=outputs)

    def close(self) -> None:
        """End the process."""
        self.asked.close()
        self.process.wait()

    def _circumstances(self, derivation: Derivation) -> Circumstances | None:
        if derivation.numerics.cls != PORTABLE:
            return None
        return Circumstances(kernels=str(LIBRARY), threads=self.way.threads, isa=self.way.isa)

    def _ask(self, question: Mapping[str, str]) -> dict[str, Any]:
        self.asked.write(json.dumps(question) + "\n")
        self.asked.flush()
        answer: dict[str, Any] = json.loads(self.answers.readline())
        return answer


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a step did: its exit status, processor time in seconds, folders."""

    status: int
    cpu_s: float
    place: Path
    outputs: Mapping[str, Path]

    def error(self) -> str:
        """Why it failed, in a line."""
        lines = (self.place / "events").read_text().splitlines()
        events = [json.loads(line) for line in lines if '"error"' in line]
        if events:
            return f"{events[-1]['reason']} ({events[-1].get('where')}: {events[-1].get('actual')})"
        return (self.place / "stderr").read_text().strip().splitlines()[-1]


EVENTS_FD = 9


def serve() -> None:
    """Import what steps import, then fork for every line on stdin."""
    import kolm_build.steps._stage
    import kolm_build.steps.sft  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_step(asked["module"], Path(asked["place"])))
        _, status, used = os.wait4(child, 0)
        told = {
            "cpu_s": used.ru_utime + used.ru_stime,
            "status": os.waitstatus_to_exitcode(status),
        }
        print(json.dumps(told), flush=True)


def _step(module: str, place: Path) -> int:
    """The exit status of one step, in a process of its own."""
    import importlib
    import traceback

    os.chdir(place / "scratch")
    for name, wanted in (("events", EVENTS_FD), ("stderr", 2), ("stdout", 1)):
        made = os.open(place / name, os.O_CREAT | os.O_WRONLY)
        os.dup2(made, wanted)
    try:
        main = importlib.import_module(f"kolm_build.steps.{module}").main
        return int(main(["step.py", str(place / "request")]))
    except BaseException:  # noqa: BLE001 -- the door of this process
        traceback.print_exc()
        return 70


@dataclass(kw_only=True)
class Maker:
    """Makes what derivations describe, each once; `PLACE` is the cache."""

    server: Server
    made: dict[str, Mapping[str, Path]] = field(default_factory=dict)

    def inputs(self, instance: Instance, derivation: Derivation) -> dict[str, Path]:
        """The folders of a derivation's inputs, made first where they are not there."""
        return {
            role: self._content(instance, one.content)
            if isinstance(one, ContentInput)
            else self._output(instance, one.derivation, one.output)
            for role, one in derivation.inputs
        }

    def _content(self, instance: Instance, content: Digest) -> Path:
        place = PLACE / "local" / str(content).replace(":", "-")
        source = EXAMPLES / instance.contents[content].removeprefix(PATH)
        if not place.exists():
            place.mkdir(parents=True)
            shutil.copy(source, place / source.name)
        return place

    def _output(self, instance: Instance, digest: Digest, output: str) -> Path:
        place = PLACE / "made" / str(digest).replace(":", "-")
        done = place / "done"
        derivation = instance.derivations[digest]
        if not done.exists():
            ran = self.server.run(derivation, self.inputs(instance, derivation), place)
            if ran.status:
                raise SystemExit(f"{derivation.name} ({derivation.step}): {ran.error()}")
            done.touch()
        return place / "outputs" / output


def instance_of(recipe: Recipe) -> Instance:
    """The derivations of `recipe`; in place of a lock stand the files as they are."""
    code = _code()
    inputs = {
        source.name: SimpleNamespace(
            name=source.name, source=source.text, tree=_digest_of(source.text)
        )
        for source in recipe.sources
    }
    lock = SimpleNamespace(
        inputs=tuple(inputs.values()),
        input=inputs.__getitem__,
        code=dict.fromkeys(STEPS, code),
        environment=SimpleNamespace(digest=code),
        version=LOCK_VERSION,
    )
    # A lock that is nothing but what `instantiate` reads of one.
    return instantiate(recipe, lock, steps=STEPS, platform=None)  # type: ignore[arg-type]


def _digest_of(source: str) -> Digest:
    data = (EXAMPLES / source.removeprefix(PATH)).read_bytes() if source.startswith(PATH) else None
    return Digest.of_blob(data or source.encode())


def _code() -> Digest:
    """A digest of everything that steps can run: what was made of other code is made anew."""
    found = hashlib.sha256(LIBRARY.read_bytes())
    for layer in ("core", "numerics", "runtime", "steps"):
        for path in sorted((ROOT / "kolm_build" / layer).rglob("*.py")):
            found.update(path.read_bytes())
    return Digest.of_blob(found.digest())


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of an algorithm."""

    name: str
    digests: Sequence[str]
    all_digests: Sequence[str] = ()
    measure: str
    first: float | None
    last: float | None
    cpu_s: float
    error: str = ""

    @property
    def moved(self) -> bool:
        """Whether the loss fell, or the reward rose; true of what has neither."""
        if self.first is None or self.last is None:
            return True
        return self.last > self.first if self.measure == "reward" else self.last < self.first

    def trouble(self, golden: Mapping[str, str]) -> str:
        """What is wrong; empty for nothing."""
        if self.error:
            return self.error
        if len(set(self.digests)) > 1:
            return "the two runs differ"
        if len(set(self.all_digests)) > 1:
            return "trace or metrics of the two runs differ"
        if not self.moved:
            return "nothing was learnt"
        if golden.get(self.name, self.digests[0]) != self.digests[0]:
            return "other bytes than golden.json has"
        return ""

    def cells(self) -> Sequence[str]:
        """The cells of its row."""
        row = ALGORITHMS[self.name]
        change = "" if self.first is None else f"{self.measure} {self.first:.4g} → {self.last:.4g}"
        digest = self.digests[0][:16] if self.digests else "-"
        return (self.name, row.family, row.paper, change, f"{self.cpu_s:.1f}", f"`{digest}`")


def train_twice(name: str, servers: Sequence[Server], maker: Maker) -> Verdict:
    """Run the last stage of the recipe of `name` once with each server."""
    text = (EXAMPLES / f"{name}.toml").read_text()
    recipe = parse_recipe(text, file=f"{name}.toml")
    instance = instance_of(recipe)
    assert recipe.pipeline is not None
    derivation = _stage_of(name, instance, len(recipe.pipeline.train))
    inputs = maker.inputs(instance, derivation)

    def run(server: Server) -> Ran:
        place = PLACE / server.way.name / name
        whole = {**inputs, **_segment(server, derivation, inputs, place)}
        return server.run(derivation, whole, place)

    with ThreadPoolExecutor(len(servers)) as pool:
        runs = list(pool.map(run, servers))
    failed = [ran.error() for ran in runs if ran.status]
    if failed:
        return Verdict(
            name=name, digests=(), measure="", first=None, last=None, cpu_s=0, error=failed[0]
        )
    measure, first, last = _movement(runs[0], ALGORITHMS[name].family)
    return Verdict(
        name=name,
        digests=[_digest(ran, but=TRACES) for ran in runs],
        all_digests=[_digest(ran) for ran in runs],
        measure=measure,
        first=first,
        last=last,
        cpu_s=runs[0].cpu_s,
    )


def _stage_of(name: str, instance: Instance, stages: int) -> Derivation:
    """The last stage that trains with the algorithm `name`; a stage may follow that does not."""
    found = [instance.nodes[f"train-{number}"] for number in range(1, stages + 1)]
    named = [
        one for one in found if name in (one.step, *(dict(one.params).get(axis) for axis in AXES))
    ]
    return (named or found)[-1]


def _segment(
    server: Server, derivation: Derivation, inputs: Mapping[str, Path], place: Path
) -> Mapping[str, Path]:
    """The checkpoint that the last segment goes on from; nothing where there are no segments."""
    params = dict(derivation.params)
    used = [str(params.get(axis)) for axis in AXES]
    rows = [ALGORITHMS[one] for one in (derivation.step, *used) if one in ALGORITHMS]
    resumable = rows and all(one.trains and one.resumable for one in rows)
    if not server.way.segments or not resumable:
        return {}
    half = replace(
        derivation,
        params=tuple(sorted((params | {"stop_after": int(params["max_steps"]) // 2}).items())),
        outputs=(("checkpoint", None),),
    )
    ran = server.run(half, inputs, place.with_name(f"{place.name}-half"))
    if ran.status:
        raise SystemExit(f"{place.name}, first half: {ran.error()}")
    return {"checkpoint": ran.outputs["checkpoint"]}


def _digest(ran: Ran, but: Sequence[str] = ()) -> str:
    """The SHA-256 over names and bytes of all outputs `but` some."""
    found = hashlib.sha256()
    for output, folder in sorted(ran.outputs.items()):
        for path in sorted(folder.rglob("*")) if output not in but else ():
            if path.is_file():
                found.update(f"{output}/{path.relative_to(folder)}\0".encode())
                found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def _movement(ran: Ran, family: str) -> tuple[str, float | None, float | None]:
    """The measure, and its mean over the first and over the last quarter of the steps."""
    if "metrics" not in ran.outputs:
        return "", None, None
    lines = (ran.outputs["metrics"] / "metrics.csv").read_text().splitlines()
    columns = lines[0].split(",")
    measure = "reward" if family == "reinforcement" and "reward" in columns else "loss"
    values = [float(line.split(",")[columns.index(measure)]) for line in lines[1:]]
    few = max(1, len(values) // 4)
    return measure, sum(values[:few]) / few, sum(values[-few:]) / few


def names(wanted: Sequence[str], third: int | None) -> list[str]:
    """The algorithms to train with."""
    found = list(wanted) or [name for name in ALGORITHMS if (EXAMPLES / f"{name}.toml").exists()]
    return found if third is None else found[third::3]


HEAD = (
    "| algorithm | family | paper | moved | CPU s | digest |",
    "| --- | --- | --- | --- | --- | --- |",
)


def write_document(verdicts: Sequence[Verdict]) -> None:
    """Put what `verdicts` say into the document's table and the golden file; the rest stays."""
    head, rest = DOCUMENT.read_text().split(BEGIN)
    table, tail = rest.split(END)
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines()[2:]}
    rows |= {one.name: "| " + " | ".join(one.cells()) + " |" for one in verdicts}
    lines = (*HEAD, *(rows[name] for name in ALGORITHMS if name in rows))
    DOCUMENT.write_text(head + BEGIN + "".join(line + "\n" for line in lines) + END + tail)
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    golden |= {verdict.name: verdict.digests[0] for verdict in verdicts}
    GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")


def main() -> int:
    """The exit status: 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="these only")
    parser.add_argument("--third", type=int, choices=(0, 1, 2), help="every third one, from here")
    parser.add_argument("--write", action="store_true", help="write the table and the golden file")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return 0
    unknown = [name for name in args.names if not (EXAMPLES / f"{name}.toml").exists()]
    if unknown:
        parser.error(f"examples/algorithms has no {', '.join(unknown)}")
    return compare(names(args.names, args.third), write=args.write)


def compare(wanted: Sequence[str], *, write: bool) -> int:
    """Train with `wanted`; 1 where anything is wrong."""
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() and not write else {}
    servers = [Server(way=way) for way in WAYS]
    maker, verdicts, bad = Maker(server=servers[0]), [], 0
    for at, name in enumerate(wanted, 1):
        verdict = train_twice(name, servers, maker)
        trouble = verdict.trouble(golden)
        bad += bool(trouble)
        verdicts.append(verdict)
        told = "  ".join(verdict.cells()[3:])
        print(f"{at:3}/{len(wanted)}  {name:<20} {trouble or 'same bytes'}  {told}", flush=True)
    for server in servers:
        server.close()
    print(
        f"{len(wanted) - bad} of {len(wanted)} algorithms: same bytes twice, and something learnt"
    )
    if write:
        write_document([one for one in verdicts if not one.trouble(golden)])
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
