"""`kolm bisect`."""

from __future__ import annotations

from argparse import Namespace
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.surfaces.cli.options import add_json, add_project, add_store
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

if TYPE_CHECKING:
    from kolm_build.core.bisect import ElementParting, Finding
    from kolm_build.core.trace import Parting
    from kolm_build.store.local import LocalStore
    from kolm_build.surfaces.bisecting import Begun, Report, Side
    from kolm_build.surfaces.contested import Training

SPEAK_S = 10.0
SFT = "sft"
"""What two folders of traces are thought to come from."""

BEGINNINGS = {
    "frozen": "the weights that are not trained, those of the base model",
    "generator": "the state of the random generator",
    "numerics": "how it computes",
    "parameters": "the adapters as they were before the first step",
    "params": "a setting of the recipe",
    "rows": "the tokens and labels of the train rows",
}
"""What the members of a trace's start are."""


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Find where two trainings of one derivation part: the optimiser step, from their\n"
        "traces; then, by running that step again on both sides, the first operation whose\n"
        "bits differ, its element, the distance, and the line that called it.\n"
        "Exits 0 if they are equal and 16 if not.",
        ("kolm bisect a/trace b/trace", "the step alone"),
        ("kolm bisect b3:… b3:… --model base --train split/train", "the operation too"),
        ("kolm bisect --node train-1", "two contents of one node"),
        ("kolm bisect a b --node train-1 --b ATEN_CPU_CAPABILITY=avx2", ""),
        ("kolm bisect a b --node train-1 --b isa=avx2 --b threads=2", ""),
    )
    parser.add_argument(
        "a", metavar="A", nargs="?", help="a trace: a folder or a digest in the store"
    )
    parser.add_argument("b", metavar="B", nargs="?", help="the other")
    parser.add_argument(
        "--node", metavar="NODE", help="take traces and inputs of this node of the project"
    )
    parser.add_argument(
        "--model", metavar="DIR", help="the model that was trained: a folder or a digest"
    )
    parser.add_argument("--train", metavar="DIR", help="the folder of train.jsonl")
    for side in "ab":
        parser.add_argument(
            f"--{side}",
            dest=f"around_{side}",
            metavar="NAME=VALUE",
            action="append",
            default=[],
            help=f"run side {side.upper()} again with python=FILE, threads=N, isa=NAME, "
            "kernels=FILE, or an environment variable",
        )
    add_project(parser)
    add_store(parser)
    add_json(parser, "one JSON object: step, operation, element")


def run(args: Namespace, terminal: Terminal) -> int:
    """Bisect; 0 if equal."""
    from tempfile import TemporaryDirectory

    from kolm_build.errors import Exit
    from kolm_build.surfaces.bisecting import bisect

    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory(prefix="kolm-bisect-")))
        finder = _Finder(args, stack, place)
        report = bisect(finder.sides(), finder.begun(), place, _Progress(terminal))
    if args.json:
        terminal.give(report.to_value())
    else:
        _say(report, terminal)
    return int(Exit.OK if report.parting is None else Exit.NOT_REPRODUCIBLE)


class _Finder:
    """Finds what the command line names, opening what it needs once."""

    def __init__(self, args: Namespace, stack: ExitStack, place: Path) -> None:
        self._args = args
        self._stack = stack
        self._place = place

    def sides(self) -> tuple[Side, Side]:
        """The two trainings."""
        from kolm_build.errors import UsageError
        from kolm_build.surfaces.bisecting import Side, Surroundings, read_trace

        args = self._args
        given = [text for text in (args.a, args.b) if text is not None]
        noted: list[list[str]] = [[], []]
        if not given and self._training is not None:
            given, noted = self._claimed()
        if len(given) != 2:
            raise UsageError(
                "two traces are compared", file="kolm bisect", expected="A B, or --node"
            )
        return tuple(  # type: ignore[return-value]  # there are two
            Side(
                name=name,
                trace=read_trace(self._folder(text, f"trace-{name}")),
                surroundings=Surroundings.parse([*claimed, *around]),
            )
            for name, text, claimed, around in zip(
                "AB", given, noted, (args.around_a, args.around_b), strict=True
            )
        )

    def begun(self) -> Begun:
        """What both trainings began with; no inputs where nothing says them."""
        from kolm_build.errors import UsageError
        from kolm_build.surfaces.bisecting import Begun

        training = self._training
        known = {} if training is None else {role: str(d) for role, d in training.inputs.items()}
        for role in ("model", "train"):
            given = getattr(self._args, role)
            known |= {} if given is None else {role: str(given)}
        if known and not {"model", "train"} <= set(known):
            raise UsageError(
                "running the training again needs both inputs",
                file="kolm bisect",
                expected="--model and --train, or --node",
            )
        return Begun(
            step=SFT if training is None else training.step,
            inputs={role: self._folder(text, role) for role, text in known.items()},
        )

    def _claimed(self) -> tuple[list[str], list[list[str]]]:
        """The two contents that are claimed for the node's trace, and what each ran in."""
        from kolm_build.errors import UsageError

        assert self._training is not None
        traces = self._training.traces
        if len(traces) < 2:
            raise UsageError(
                "the node's trace is not contested",
                file=self._args.node,
                expected="two contents",
                actual=f"{len(traces)}",
                advice="`kolm build --check` builds it again; or name two traces.",
            )
        threads = [around.get("threads") for _, around in traces[:2]]
        return (
            [str(digest) for digest, _ in traces[:2]],
            [[f"threads={count}"] if count else [] for count in threads],
        )

    def _folder(self, text: str, name: str) -> Path:
        """The folder that `text` names: its path, or a digest in the store."""
        from kolm_build.core.digest import Digest

        if not text.startswith(Digest.prefix + ":"):
            return Path(text)
        folder = self._place / name
        self._store.materialise(Digest.parse(text), folder)
        return folder

    @cached_property
    def _store(self) -> LocalStore:
        from kolm_build.surfaces.opening import open_store

        return self._stack.enter_context(open_store(self._args, read_only=True))

    @cached_property
    def _training(self) -> Training | None:
        if self._args.node is None:
            return None
        from kolm_build.surfaces.contested import training_of
        from kolm_build.surfaces.lookup import Look
        from kolm_build.surfaces.project import open_project

        project = open_project(self._args.project, lock=self._args.lock)
        return training_of(Look.at(project), self._args.node, self._store)


class _Progress:
    """Says how far a run is: at its first step, its last, and every ten seconds between."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._began_s: dict[str, float] = {}
        self._spoken_s = 0.0

    def __call__(self, side: str, done: int, total: int) -> None:
        from time import monotonic

        from kolm_build.surfaces.progress import duration

        now_s = monotonic()
        if done == 1:
            self._began_s[side] = now_s
        if done not in {1, total} and now_s - self._spoken_s < SPEAK_S:
            return
        self._spoken_s = now_s
        text = f"side {side}: step {done}/{total}"
        if 1 < done < total:
            left_s = (now_s - self._began_s[side]) / (done - 1) * (total - done)
            text += f" ETA {duration(left_s)}"
        self._terminal.tell(text)


def _say(report: Report, terminal: Terminal) -> None:
    if report.parting is None:
        terminal.say("identical")
        return
    _say_step(report.parting, terminal)
    for name, values in report.beginnings.items():
        _say_beginning(name, values, terminal)
    for side, is_same in report.reproduced.items():
        word = "the same bits as recorded" if is_same else "other bits than recorded"
        terminal.say(f"side {side} run again here: {word}")
    if report.finding is not None:
        _say_operation(report.finding, terminal)
    elif report.is_traced:
        terminal.say("both sides compute the same here: the difference belongs to a machine,")
        terminal.say("a library or a setting that is not in these surroundings (--a, --b)")
    elif report.parting.step and report.parting.parts:
        terminal.say("the inputs name no operation: give --model and --train, or --node")


def _say_step(parting: Parting, terminal: Terminal) -> None:
    if not parting.parts:
        terminal.say(f"one training ends before step {parting.step}; they are equal until there")
    elif parting.step == 0:
        terminal.say(f"the trainings began differently: {', '.join(parting.parts)}")
    else:
        terminal.say(f"first different step: {parting.step} ({', '.join(parting.parts)})")


def _say_beginning(name: str, values: tuple[object, object], terminal: Terminal) -> None:
    meaning = BEGINNINGS.get(name.partition(".")[0], "unknown to this version")
    terminal.say(f"  {name}: {meaning}")
    for side, value in zip("AB", values, strict=True):
        terminal.say(f"    {side}: {'not set' if value is None else value}")


def _say_operation(finding: Finding, terminal: Terminal) -> None:
    parting = finding.parting
    if parting.output is None:
        one, other = (name or "nothing" for name in parting.names)
        terminal.say(f"operation {parting.number}: A runs {one}, B runs {other}")
        return
    terminal.say(
        f"operation {parting.number}: {parting.names[0]}, number {parting.occurrence} of that name"
    )
    terminal.say(f"tensor: {finding.role}, {finding.dtype} {list(finding.shape)}")
    if finding.element is not None:
        _say_element(finding.element, terminal)
    if finding.origin is not None:
        origin = finding.origin
        backward = f" (its gradient, {origin.backward})" if origin.backward else ""
        terminal.say(f"module: {origin.module or 'none'}{backward}")
        terminal.say(f"line: {origin.line or 'unknown'}")


def _say_element(element: ElementParting, terminal: Terminal) -> None:
    terminal.say(
        f"element: {element.index} {list(element.coordinates)}; "
        f"{element.differing} of {element.elements} differ"
    )
    for side, value, decimal in zip("AB", element.values, element.decimals, strict=True):
        terminal.say(f"  {side}: {value} ({decimal})")
    terminal.say(f"  apart: {'not numbers' if element.ulps is None else f'{element.ulps} ulp'}")
