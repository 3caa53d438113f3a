"""`kolm version`."""

from __future__ import annotations

import sys
from argparse import Namespace

from kolm_build import __version__
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

# Formats this program writes: record versions of the spec pages named like the keys.
FORMATS = {"artifact": 1, "derivation": 1, "lock": 1, "recipe": 1, "step-protocol": 1, "store": 1}


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Print the version of kolm.",
        ("kolm version", "for people"),
        ("kolm version --json", "with the formats it reads and writes"),
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
