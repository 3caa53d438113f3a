"""`kolm federated`."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.surfaces.cli.options import add_json, positive
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

if TYPE_CHECKING:
    from kolm_build.engine.events import OnEvent
    from kolm_build.surfaces.building import Options
    from kolm_build.surfaces.federated.aggregator import Told
    from kolm_build.surfaces.federated.federation import Federation, SiteProcess


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Train one adapter at several sites, each a process with a project, store and key of\n"
        "its own, and bring together what they learned. No row leaves a site; with masks the\n"
        "aggregator sees the sum of the updates alone. FOLDER holds federation.toml.",
        ("kolm federated examples/federated/tiny", "three sites, in a folder made for it"),
        ("kolm federated examples/federated/tiny --method scaffold", "another method"),
        ("kolm federated examples/federated/tiny --folder /srv/f", "keep the parties' folders"),
        ("kolm federated examples/federated/tiny --noise 0.8", "differential privacy"),
        ("kolm federated --site /srv/f/north", "be one site, on stdin and stdout"),
    )
    parser.add_argument(
        "federation", metavar="FOLDER", nargs="?", default=".", help="default: this folder"
    )
    parser.add_argument("--method", metavar="NAME", help="fed-avg, scaffold, flora, … (the plan's)")
    parser.add_argument("--rounds", metavar="N", type=positive, help="how many (the file's)")
    parser.add_argument(
        "--no-masks", action="store_true", help="send updates as they are: the aggregator sees each"
    )
    parser.add_argument(
        "--noise",
        metavar="Z",
        help="standard deviation of the noise over the clip; sites then weigh the same",
    )
    parser.add_argument(
        "--folder", metavar="DIR", help="where the parties' folders are (default: a new one)"
    )
    parser.add_argument(
        "--threads", metavar="N", type=positive, help="threads of a step, which change no byte"
    )
    parser.add_argument(
        "--patience",
        metavar="S",
        type=positive,
        default=3600,
        help="seconds that a site may take to answer (default: 3600)",
    )
    parser.add_argument("--site", metavar="DIR", help="be the site whose folder this is")
    add_json(parser, "one JSON object a round")


def run(args: Namespace, terminal: Terminal) -> int:
    """Run the rounds, or be a site."""
    from kolm_build.surfaces.building import Options

    options = Options(offline=True, threads=args.threads)
    if args.site is not None:
        return _be_site(Path(args.site).resolve(), options)
    from kolm_build.surfaces.federated.federation import Federation

    federation = Federation.read(Path(args.federation), _changes(args))
    with _folder(args.folder) as folder:
        _run_rounds(federation, folder, args, options, terminal)
    return 0


def _changes(args: Namespace) -> Mapping[str, object]:
    changes: dict[str, object] = {}
    if args.method is not None:
        changes["method"] = args.method
    if args.no_masks:
        changes["masks"] = False
    if args.noise is not None:
        changes |= {"noise_multiplier": args.noise, "weight": "equal"}
    return changes


@contextmanager
def _folder(given: str | None) -> Iterator[Path]:
    if given is not None:
        path = Path(given).resolve()
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="kolm-federated-") as made:
        yield Path(made).resolve()


def _run_rounds(
    federation: Federation, folder: Path, args: Namespace, options: Options, terminal: Terminal
) -> None:
    from kolm_build.surfaces.federated.opening import open_aggregator
    from kolm_build.surfaces.progress import trouble_lines

    keys = federation.lay_out(folder)
    peers = {name: keys[name] for name in federation.sites}
    with ExitStack() as stack:
        links = {name: _start(name, folder, args, stack) for name in federation.sites}
        aggregator = stack.enter_context(
            open_aggregator(
                folder,
                federation.plan,
                peers,
                options=options,
                on_event=trouble_lines(terminal),
            )
        )
        for _ in range(args.rounds or federation.rounds):
            _tell(aggregator.round(links), args, terminal)


def _start(name: str, folder: Path, args: Namespace, stack: ExitStack) -> SiteProcess:
    from kolm_build.surfaces.federated.federation import SiteProcess

    arguments = [] if args.threads is None else ["--threads", str(args.threads)]
    process = SiteProcess(
        name, folder / name, hidden=folder, arguments=arguments, patience_s=args.patience
    )
    stack.callback(process.stop)
    return process


def _tell(told: Told, args: Namespace, terminal: Terminal) -> None:
    summary = told.summary
    accuracy = f"{told.correct / told.judged:.4f}" if told.judged else None
    if args.json:
        terminal.give(
            {
                **summary,
                "accuracy": accuracy,
                "correct": told.correct,
                "judged": told.judged,
                "adapter": str(told.adapter),
                "refused": {name: error.to_value() for name, error in told.refused.items()},
            }
        )
        return
    sites = summary["sites"]
    assert isinstance(sites, dict), "the step writes it"
    stayed = summary["survivors"]
    assert isinstance(stayed, list), "the step writes it"
    listed = "  ".join(f"{name} {rows}" for name, rows in sites.items())
    terminal.say(f"round {summary['round']}  {summary['method']}  {told.adapter}", "bold")
    terminal.say(f"  sites     {len(stayed)} of {len(sites)} stayed; rows: {listed}")
    masks = "on: updates seen as a sum alone" if summary["masks"] else "off: each update is seen"
    terminal.say(f"  masks     {masks}")
    terminal.say(
        f"  norm      {summary['update_norm']} of the mean, each at most {summary['clip']}"
    )
    epsilon = f"{summary['epsilon']} at delta {summary['delta']}" if "epsilon" in summary else ""
    terminal.say(f"  epsilon   {epsilon or 'no noise: no bound on what an adapter reveals'}")
    terminal.say(f"  accuracy  {accuracy or 'unknown'} ({told.correct} of {told.judged} rows)")
    for name, error in told.refused.items():
        terminal.say(f"  refused   {name}: {error.reason}", "yellow")


def _be_site(folder: Path, options: Options) -> int:
    """Answer messages until there are none."""
    from kolm_build.errors import KolmError
    from kolm_build.surfaces.federated.opening import open_site
    from kolm_build.surfaces.federated.wire import read_message, refusal, write_message

    received, answers = sys.stdin.buffer, sys.stdout.buffer
    with open_site(folder, options=options, on_event=_ignored()) as site:
        while (message := read_message(received)) is not None:
            try:
                answer = site.handle(message)
            except KolmError as error:
                answer = refusal(error)
            write_message(answers, answer)
    return 0


def _ignored() -> OnEvent:
    return lambda _event: None
