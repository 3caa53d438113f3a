"""`kolm version`."""

from __future__ import annotations

import sys
from argparse import Namespace

from kolm_build import __version__
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

# The newest version of each format that this program writes and reads; older ones stay readable.
FORMATS = {
    "artifact": 3,
    "derivation": 1,
    "kolmpack": 1,
    "lock": 2,
    "recipe": 1,
    "step-protocol": 1,
    "store": 1,
    "substituter": 1,
    "trust": 2,
}


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Print the version of kolm.",
        ("kolm version", "for people"),
        ("kolm version --json", "with the newest version of each format"),
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: Namespace, terminal: Terminal) -> int:
    """Print it."""
    if args.json:
        python = ".".join(map(str, sys.version_info[:3]))
        terminal.give({"formats": FORMATS, "kolm": __version__, "python": python})
    else:
        terminal.say(f"kolm {__version__}")
    return 0
