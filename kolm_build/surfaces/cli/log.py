"""`kolm log`."""

from __future__ import annotations

from argparse import Namespace

from kolm_build.surfaces.cli.options import add_project, add_store
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Print what a node's step printed when it was built, also where the result is reused,\n"
        "or when it last failed.",
        ("kolm log train-1", ""),
        ("kolm log train-1 | less", ""),
    )
    parser.add_argument("node", metavar="NODE", help="a node")
    add_project(parser)
    add_store(parser)


def run(args: Namespace, terminal: Terminal) -> int:
    """Print it, byte for byte where nobody looks."""
    from kolm_build.errors import UsageError
    from kolm_build.surfaces.lookup import Look
    from kolm_build.surfaces.opening import open_store
    from kolm_build.surfaces.project import open_project

    look = Look.at(open_project(args.project, lock=args.lock))
    with open_store(args) as store:
        log = look.log(args.node, store)
    if log is None:
        raise UsageError(
            "it was never built here", file=args.node, advice="`kolm build` builds it."
        )
    if log:
        terminal.say(log.decode(errors="backslashreplace").removesuffix("\n"))
    else:
        terminal.tell("it printed nothing", "dim")
    return 0
