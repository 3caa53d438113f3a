"""`kolm get`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from kolm_build.surfaces.cli.options import add_json, add_project, add_store
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

STDOUT = "-"


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Write what was built to a plain folder or file of yours, every byte checked against its\n"
        "hash on the way. Nothing is built. The destination appears whole or not at all.\n"
        "\n"
        "WHAT is a node of the recipe, behind a dot the output meant where it has several, or the\n"
        "digest of a derivation, likewise, of a tree or of a file's bytes; a path behind a slash\n"
        "means one folder or file in it. `kolm show NODE` tells the outputs, `kolm build\n"
        "--dry-run` the nodes.",
        ("kolm get merge-1 model", "the merged model, a Hugging Face folder"),
        ("kolm get train-1.metrics/metrics.csv x.csv", "one file: figures of a training"),
        ("kolm get train-1.metrics/metrics.csv -", "the same, to stdout"),
        ("kolm get dataset.train rows --force", "the rows, in place of what is there"),
        ("kolm get b3:… tree", "a tree or a derivation's output; no recipe needed"),
        ("kolm get evaluation eval --json", "and its digest, for a script"),
    )
    parser.add_argument(
        "what", metavar="WHAT", help="NODE[.OUTPUT][/PATH] or DIGEST[.OUTPUT][/PATH]"
    )
    parser.add_argument(
        "destination",
        metavar="DESTINATION",
        type=Path,
        help="the new folder or file; - writes one file to stdout",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace what is at the destination",
    )
    add_project(parser)
    add_store(parser)
    add_json(parser, "one JSON object: what was written, its digest, its size")


def run(args: Namespace, terminal: Terminal) -> int:
    """Write it."""
    from kolm_build.surfaces.cli.store import size
    from kolm_build.surfaces.getting import checked_file, find, get
    from kolm_build.surfaces.lookup import Look
    from kolm_build.surfaces.opening import kept_folders, open_store
    from kolm_build.surfaces.project import open_project

    _check_no_artifact(args.what)
    _check_stdout(args)

    def look() -> Look:
        return Look.at(open_project(args.project, lock=args.lock))

    dest = args.destination
    with open_store(args, read_only=True) as store:
        source = find(args.what, store, look)
        if str(dest) == STDOUT:
            with checked_file(source, store) as made:
                terminal.give_file(made)
        else:
            get(source, dest, store, force=args.force, kept=[*kept_folders(args, store)])
    if args.json:
        terminal.give({"path": str(dest), **source.to_value()})
    else:
        say = terminal.tell if str(dest) == STDOUT else terminal.say
        say(f"{size(source.size_bytes):>10}  {dest}  {source.content}", "green")
        terminal.tell(
            f"{source.files} file{'' if source.files == 1 else 's'} of {source.label}", "dim"
        )
    return 0


def _check_stdout(args: Namespace) -> None:
    from kolm_build.errors import UsageError

    if args.json and str(args.destination) == STDOUT:
        raise UsageError(
            "--json and the file itself cannot both go to stdout",
            file="kolm get",
            advice="Leave out one of the two.",
        )


def _check_no_artifact(what: str) -> None:
    """Send who names an artifact's file to the command that takes one."""
    from kolm_build.errors import UsageError

    if what.endswith(".kolm") and Path(what).is_file():
        raise UsageError(
            "an artifact's file is in no store",
            file=what,
            advice=f"`kolm export {what} --format safetensors` writes the model in it.",
        )
