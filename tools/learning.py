"""Train models of several families, and say how much better each is on rows that it never saw.

`python tools/learning.py [NAME…]` takes each folder of examples/learning, locks its recipe and
builds what its learning.toml names with `kolm lock` and `kolm build`, in the store build/learning;
what is there is used again, so it can be stopped and gone on with. Two models are compared on the
same held-out rows, row by row. It prints a line for each comparison, and exits with 1 where the
95 % interval of a difference does not lie above zero. --write puts the lines into docs/learning.md.

A learning.toml has `version` (1), `family`, `task`, `measure` (``label``, the likeliest label, or
``text``, what the model says), `tuned`, the node that evaluates the tuned model, `model`, the node
of that model, and one `[[baseline]]` or more, each with `name` and the `node` that evaluates it.
`project`, where it is there, is the folder of the recipe, `[rounds]` a federation to run first.
With `seeds` the recipe is built once with each, and the interval is that of the mean over them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kolm_build.core import strict_json
from kolm_build.core.closure import closure
from kolm_build.core.digest import Digest
from kolm_build.core.fields import Fields
from kolm_build.core.plan import Plan
from kolm_build.core.toml import read_toml
from kolm_build.core.tree import File
from kolm_build.errors import InvalidRecordError, KolmError
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.building import Prepared, planned, prepare
from kolm_build.surfaces.project import open_project
from tools.differences import QUANTILES, Difference, OverSeeds, Verdicts

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples" / "learning"
PLACE = ROOT / "build" / "learning"
DOCUMENT = ROOT / "docs" / "learning.md"
BEGIN, END = "<!-- begin: tools/learning.py -->\n", "<!-- end -->\n"
FEDERATION, LESSON = "federation.toml", "learning.toml"
WEIGHTS = ("adapter_model.safetensors", "model.safetensors")
"""Of these files the first that a model has is what was trained."""
MEASURES = ("label", "text")
RECIPE = "kolm.toml"


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """A federation that runs before the recipe is locked.

    Attributes:
        recipe: The example whose nodes give what the parties need.
        inputs: Name to the output of it that goes to ``inputs/NAME``.
        adapter: The folder, below the lesson's, for the last round's adapter.
    """

    recipe: str
    inputs: Mapping[str, str]
    adapter: str

    @classmethod
    def from_value(cls, value: object) -> Rounds:
        """The rounds that `value` describes."""
        fields = Fields(value)
        made = cls(
            recipe=fields.text("recipe"),
            inputs=fields.record("inputs", _texts),
            adapter=fields.text("adapter"),
        )
        fields.done()
        return made


def _texts(value: object) -> Mapping[str, str]:
    fields = Fields(value)
    assert isinstance(value, Mapping), "Fields has checked it"
    return {name: fields.text(name) for name in sorted(value)}


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a learning.toml says.

    Attributes:
        name: Its folder's name.
        folder: Its folder.
        project: The folder of its recipe.
        family: The family of what trains.
        task: What is learned, in words.
        measure: ``label`` or ``text``.
        tuned: The node that evaluates the tuned model.
        model: The output that is the tuned model.
        baselines: Name to the node that evaluates it.
        rounds: The federation to run first, if there is one.
        seeds: Seeds to build the recipe with, one after another; none for the recipe's own.
    """

    name: str
    folder: Path
    project: Path
    family: str
    task: str
    measure: str
    tuned: str
    model: str
    baselines: Mapping[str, str]
    rounds: Rounds | None
    seeds: tuple[int, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Lesson:
        """The lesson in `folder`.

        Raises:
            InvalidRecordError: It is not as described.
        """
        path = folder / LESSON
        try:
            return cls._parse(folder, Fields(read_toml(path.read_text("utf-8"))))
        except InvalidRecordError as error:
            raise error.in_file(str(path)) from None

    @classmethod
    def _parse(cls, folder: Path, fields: Fields) -> Lesson:
        fields.version(1)
        made = cls(
            name=folder.name,
            folder=folder,
            project=(folder / fields.text("project", default=".")).resolve(),
            family=fields.text("family"),
            task=fields.text("task"),
            measure=fields.parsed("measure", _measure),
            tuned=fields.text("tuned"),
            model=fields.text("model"),
            baselines=dict(fields.records("baseline", _baseline)),
            rounds=fields.record("rounds", Rounds.from_value) if fields.has("rounds") else None,
            seeds=fields.records("seeds", _seed),
        )
        fields.done()
        if not made.baselines:
            raise InvalidRecordError("nothing to compare with", where="baseline")
        made.check_seeds()
        return made

    def check_seeds(self) -> None:
        """Refuse seeds that no interval can be made of.

        Raises:
            InvalidRecordError: One alone, too many, one twice, or a federation beside them.
        """
        count, most = len(self.seeds), len(QUANTILES) + 1
        is_fit = 2 <= count <= most and count == len(set(self.seeds)) and not self.rounds
        if self.seeds and not is_fit:
            raise InvalidRecordError(
                "not seeds to compare over",
                where="seeds",
                expected=f"2 to {most} different ones, and no rounds",
                actual=", ".join(map(str, self.seeds)),
            )

    @property
    def targets(self) -> tuple[str, ...]:
        """What must be built."""
        return (self.tuned, self.model, *self.baselines.values())


def _measure(text: str) -> str:
    if text not in MEASURES:
        raise InvalidRecordError("no such measure", expected=" or ".join(MEASURES), actual=text)
    return text


def _seed(value: object) -> int:
    if type(value) is not int or value < 0:
        raise InvalidRecordError("no seed", expected="a whole number", actual=repr(value))
    return value


def _baseline(value: object) -> tuple[str, str]:
    fields = Fields(value)
    made = fields.text("name"), fields.text("node")
    fields.done()
    return made


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the table: a tuned model, a baseline, what it took."""

    lesson: Lesson
    baseline: str
    difference: Difference | OverSeeds
    cpu_s: int
    digest: str

    @property
    def key(self) -> str:
        """What the line is about, as its first cells say it."""
        return " | ".join((self.lesson.family, self.lesson.name, self.baseline))

    def cells(self) -> Sequence[str]:
        """Its cells."""
        return (
            self.lesson.family,
            self.lesson.name,
            self.baseline,
            self.lesson.task,
            *self.difference.cells(),
            str(self.cpu_s),
            f"`{self.digest[:16]}`",
        )


HEAD = (
    "family",
    "example",
    "baseline",
    "task",
    "rows",
    "baseline %",
    "tuned %",
    "difference [95 %]",
    "CPU s",
    "weights",
)


def kolm(command: str, *arguments: str) -> str:
    """What `kolm` prints, run as a person would; its progress goes to the terminal.

    Raises:
        SystemExit: It failed, and has said why.
    """
    words = [sys.executable, "-m", "kolm_build", command, *arguments]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(words, stdout=subprocess.PIPE, env=environment, check=False, text=True)
    if done.returncode:
        sys.exit(f"kolm {command} ended with {done.returncode}: {done.stdout[-2000:]}")
    return done.stdout


@dataclass(frozen=True, kw_only=True)
class Classroom:
    """Where everything is kept.

    Attributes:
        place: The folder of locks, of the store, of federations.
        threads: Compute threads of a step; they change no byte.
    """

    place: Path
    threads: int

    @property
    def store(self) -> Path:
        """The store."""
        return self.place / "store"

    def build(self, name: str, project: Path, targets: Sequence[str]) -> None:
        """Lock the project and build these nodes; what is there is used again."""
        where = self._where(name, project)
        kolm("lock", *where, "--update", "code", "--update", "environment")
        kolm("build", *where, "--no-sign", "--threads", str(self.threads), *targets)

    def _where(self, name: str, project: Path) -> tuple[str, ...]:
        """The options that name the project, its lock and the store."""
        return ("-C", str(project), "--lock", str(self._lock(name)), "--store", str(self.store))

    def _lock(self, name: str) -> Path:
        return self.place / f"{name}.lock"

    def prepared(self, name: str, project: Path, store: LocalStore) -> Prepared:
        """The project's derivations."""
        return prepare(open_project(project, lock=self._lock(name)), store)

    def lines(self, lesson: Lesson) -> Iterator[Line]:
        """The lines of a lesson, after all that it takes."""
        if not lesson.seeds:
            yield from self._lines_of(lesson)
            return
        each = []
        for seed in lesson.seeds:
            each.append(list(self._lines_of(self._seeded(lesson, seed))))
            for line in each[-1]:
                print(f"seed {seed:<7}" + "  ".join(line.cells()), file=sys.stderr, flush=True)
        yield from (over_seeds(lesson, lines) for lines in zip(*each, strict=True))

    def _seeded(self, lesson: Lesson, seed: int) -> Lesson:
        """The lesson with a copy of its recipe that has this seed."""
        name = f"{lesson.name}-seed-{seed}"
        project = self.place / name
        shutil.rmtree(project, ignore_errors=True)
        shutil.copytree(lesson.project, project)
        recipe = project / RECIPE
        recipe.write_text(with_seed(recipe.read_text("utf-8"), seed), "utf-8")
        return replace(lesson, name=name, project=project, seeds=())

    def _lines_of(self, lesson: Lesson) -> Iterator[Line]:
        rounds_s = self._hold_rounds(lesson) if lesson.rounds else 0
        self.build(lesson.name, lesson.project, lesson.targets)
        with LocalStore.open(self.store) as store:
            made = Made.of(self.prepared(lesson.name, lesson.project, store), lesson, store)
            tuned = made.verdicts(lesson.tuned, lesson.measure)
            digest, cpu_s = made.weights(lesson.model), made.cpu_s(lesson.model) + rounds_s
            for name, node in lesson.baselines.items():
                yield Line(
                    lesson=lesson,
                    baseline=name,
                    difference=Difference.of(made.verdicts(node, lesson.measure), tuned),
                    cpu_s=cpu_s,
                    digest=digest,
                )

    def _hold_rounds(self, lesson: Lesson) -> int:
        """Run the lesson's federation, once; the processor seconds that it took."""
        assert lesson.rounds is not None
        told = self.place / f"{lesson.name}-rounds.json"
        known = json.loads(told.read_text("utf-8")) if told.exists() else {}
        given = self._lay_inputs(lesson.folder / "inputs", lesson.rounds)
        given["plan"] = str(Digest.of_blob((lesson.folder / FEDERATION).read_bytes()))
        parties = self.place / f"{lesson.name}-parties"
        if known.get("given") != given:
            shutil.rmtree(parties, ignore_errors=True)
            known = {"given": given} | self._federate(lesson.folder, parties)
            told.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", "utf-8")
        store = ("--store", str(parties / "aggregator" / "store"))
        _get(known["adapter"], lesson.folder / lesson.rounds.adapter, *store)
        return int(known["cpu_s"])

    def _federate(self, folder: Path, parties: Path) -> dict[str, object]:
        """The digest of the last round's adapter, and what it took."""
        before = _children_s()
        where = (str(folder), "--folder", str(parties), "--threads", str(self.threads))
        printed = kolm("federated", *where, "--json").splitlines()
        sys.stderr.write("".join(f"{line}\n" for line in printed))
        return {"adapter": json.loads(printed[-1])["adapter"], "cpu_s": _children_s() - before}

    def _lay_inputs(self, dest: Path, rounds: Rounds) -> dict[str, str]:
        """Put what the parties need below `dest`; name to its digest."""
        project, outputs = EXAMPLES / rounds.recipe, rounds.inputs
        self.build(rounds.recipe, project, tuple(outputs.values()))
        where = self._where(rounds.recipe, project)
        return {name: _get(node, dest / name, *where) for name, node in outputs.items()}


def _children_s() -> int:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(used.ru_utime + used.ru_stime)


def _get(what: str, dest: Path, *where: str) -> str:
    """Put an output in place of what is at `dest`; its digest."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    told = kolm("get", what, str(dest), "--force", "--json", *where)
    return str(json.loads(told)["content"])


@dataclass(frozen=True, kw_only=True)
class Made:
    """What was built for a lesson, in a store."""

    prepared: Prepared
    plan: Plan
    store: LocalStore

    @classmethod
    def of(cls, prepared: Prepared, lesson: Lesson, store: LocalStore) -> Made:
        """What `lesson` needs of `prepared`."""
        wanted = {name: prepared.instance.find(name) for name in lesson.targets}
        plan = planned(prepared, wanted, store, check=False)
        if plan.builds:
            sys.exit(f"{lesson.name}: not built: {plan.builds[0].name}")
        return cls(prepared=prepared, plan=plan, store=store)

    def _files(self, output: str) -> Mapping[str, File]:
        content = self.plan.contents[self.prepared.instance.find(output)]
        entries = self.store.tree(content).entries
        return {name: node for name, node in entries if isinstance(node, File)}

    def verdicts(self, node: str, measure: str) -> Verdicts:
        """What the evaluation `node` found of each row."""
        data = self.store.read_blob(self._files(node)["results.jsonl"].b3)
        found: dict[str, bool] = {}
        for line in data.splitlines():
            row = strict_json.loads(line)
            assert isinstance(row, dict)
            found[str(row["id"])] = is_right(row, measure)
        return found

    def weights(self, output: str) -> str:
        """The SHA-256 of what was trained of the model `output`, 64 hex digits."""
        files = self._files(output)
        name = next(one for one in WEIGHTS if one in files)
        return files[name].sha256.hex

    def cpu_s(self, output: str) -> int:
        """Processor seconds of all that the model `output` is made from, as the claims say."""
        nodes = self.prepared.instance.derivations
        start = self.prepared.instance.find(output).derivation
        needed = closure([start], lambda one: [need.derivation for need in nodes[one].needs])
        return round(sum(self._cpu_ms(one) for one in needed) / 1000)

    def _cpu_ms(self, digest: Digest) -> int:
        node = self.prepared.instance.derivations[digest]
        if node.is_fixed:  # fetched, not made
            return 0
        output = node.outputs[0][0]
        claims = self.store.realisations(self.plan.resolved[digest], output)
        spent = [claim.circumstances.get("cpu_ms") for claim in claims]
        known = [ms for ms in spent if isinstance(ms, int)]
        if not known:
            raise InvalidRecordError("no claim says what it took", where=str(digest))
        return known[0]


def with_seed(recipe: str, seed: int) -> str:
    """The text of a recipe with another seed of its numerics.

    Raises:
        InvalidRecordError: It does not say its seed on a line of its own, once.
    """
    text, count = re.subn(r"^seed = [0-9]+$", f"seed = {seed}", recipe, flags=re.MULTILINE)
    if count != 1:
        raise InvalidRecordError(
            "not one line with a seed", where="numerics.seed", expected="1", actual=str(count)
        )
    return text


def over_seeds(lesson: Lesson, lines: Sequence[Line]) -> Line:
    """The line of a lesson, of its lines with each seed: all their time, a digest of theirs."""
    differences = [one.difference for one in lines if isinstance(one.difference, Difference)]
    return Line(
        lesson=lesson,
        baseline=lines[0].baseline,
        difference=OverSeeds(each=tuple(differences)),
        cpu_s=sum(one.cpu_s for one in lines),
        digest=sha256("".join(f"{one.digest}\n" for one in lines).encode()).hexdigest(),
    )


def is_right(row: Mapping[str, object], measure: str) -> bool:
    """Whether a row of an evaluation is right by `measure`, whatever the recipe measures."""
    if measure == "label":
        return row["label_correct"] is True
    return str(row["output"]).strip() == str(row["answer"]).strip()


def lessons(wanted: Sequence[str]) -> list[Lesson]:
    """The lessons with these names; all of them where none is named."""
    found = {path.parent.name: path.parent for path in sorted(EXAMPLES.glob(f"*/{LESSON}"))}
    unknown = [name for name in wanted if name not in found]
    if unknown:
        sys.exit(f"no such example: {unknown[0]}; there are {', '.join(found)}")
    return [Lesson.read(found[name]) for name in wanted or found]


def write_document(lines: Sequence[Line]) -> None:
    """Put `lines` into the document's table; what it says of other examples stays."""
    head, rest = DOCUMENT.read_text("utf-8").split(BEGIN)
    table, tail = rest.split(END)
    made = {line.lesson.name for line in lines}
    rows = [row for row in table.splitlines()[2:] if row.split(" | ")[1] not in made]
    rows += ["| " + " | ".join(line.cells()) + " |" for line in lines]
    top = ["| " + " | ".join(HEAD) + " |", "| " + " | ".join(["---"] * len(HEAD)) + " |"]
    body = "".join(row + "\n" for row in (*top, *sorted(rows)))
    DOCUMENT.write_text(head + BEGIN + body + END + tail, "utf-8")


def main() -> int:
    """The exit status: 1 where a model is not better than its baseline."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="these examples only")
    parser.add_argument("--write", action="store_true", help="write the table in docs/learning.md")
    parser.add_argument("--threads", type=int, default=1, help="threads of a step (default: 1)")
    args = parser.parse_args()
    room = Classroom(place=PLACE, threads=args.threads)
    room.place.mkdir(parents=True, exist_ok=True)
    try:
        return compare(room, lessons(args.names), write=args.write)
    except KolmError as error:
        sys.exit(str(error))


def compare(room: Classroom, wanted: Sequence[Lesson], *, write: bool) -> int:
    lines: list[Line] = []
    for lesson in wanted:
        for line in room.lines(lesson):
            lines.append(line)
            verdict = "better" if line.difference.is_better else "NOT BETTER"
            print(f"{verdict:<12}" + "  ".join(line.cells()), flush=True)
    better = sum(line.difference.is_better for line in lines)
    print(f"{better} of {len(lines)} comparisons: better by more than chance")
    if write and better == len(lines):
        write_document(lines)
    return int(better < len(lines))


if __name__ == "__main__":
    sys.exit(main())
