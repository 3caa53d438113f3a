"""`kolm why`."""

from __future__ import annotations

from argparse import Namespace

from kolm_build.surfaces.cli.options import add_json, add_project, add_store
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Show how the node A depends on the node B: one shortest path, input by input.",
        ("kolm why package dataset", ""),
    )
    parser.add_argument("a", metavar="A", help="a node")
    parser.add_argument("b", metavar="B", help="a node it may depend on")
    add_project(parser)
    add_store(parser)
    add_json(parser, "one JSON object")


def run(args: Namespace, terminal: Terminal) -> int:
    """Show the path."""
    from kolm_build.surfaces.lookup import Look
    from kolm_build.surfaces.project import open_project

    look = Look.at(open_project(args.project, lock=args.lock))
    path = look.path(args.a, args.b)
    if args.json:
        steps = [{"node": node, "role": role} for node, role in path]
        terminal.give({"depends": bool(path), "path": steps})
    elif not path:
        terminal.say(f"{args.a} does not depend on {args.b}")
    else:
        terminal.say(_drawn(path))
    return 0


def _drawn(path: tuple[tuple[str, str], ...]) -> str:
    """One line a node; each names the input through which the one above needs it."""
    lines = [path[0][0]]
    for depth, (node, role) in enumerate(path[1:], start=1):
        lines.append(f"{'   ' * (depth - 1)}└─ {role}: {node}")
    return "\n".join(lines)
