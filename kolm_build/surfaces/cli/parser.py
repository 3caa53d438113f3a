"""From argv to a command: argparse, one parser a command, built only for the one that runs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from importlib import import_module

from kolm_build.errors import UsageError
from kolm_build.surfaces.cli.table import COMMANDS, GROUPS, MODULES
from kolm_build.surfaces.terminal import Terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, Protocol

    class Command(Protocol):
        """What a module of this package offers."""

        @staticmethod
        def describe(parser: Parser) -> None:
            """Give `parser` the command's arguments, description and examples."""

        @staticmethod
        def run(args: argparse.Namespace, terminal: Terminal) -> int:
            """Carry the command out; the exit status."""


_HELP_COLUMNS = 80
_SHOWN = 160  # characters of a usage that an error shows; a longer one hides what is wrong


class _Layout(argparse.RawDescriptionHelpFormatter):
    """One width everywhere, so that the help in the docs is the help on the screen."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=_HELP_COLUMNS)

    def _format_action(self, action: argparse.Action) -> str:
        text = super()._format_action(action)
        if not isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 -- it has no other name
            return text
        _, *lines = text.splitlines(keepends=True)  # the first would say ACTION and nothing more
        return "".join(re.sub(r"^    (\S+)", r"  \1  ", line) for line in lines)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of exiting, and shows examples."""

    def __init__(self, prog: str, **options: str) -> None:
        super().__init__(
            prog=prog,
            description=options.get("description"),
            formatter_class=_Layout,
            allow_abbrev=False,
        )
        self.has_optional_word = False
        """Whether a word that may be left out can stand behind options."""

    def parsed(self, rest: Sequence[str]) -> argparse.Namespace:
        """What the words `rest` say."""
        # argparse gives up on a word that may be left out as soon as an option stands before it.
        return self.parse_intermixed_args(rest) if self.has_optional_word else self.parse_args(rest)

    def tell_of(self, description: str, *examples: tuple[str, str]) -> None:
        """Set what the help says before the arguments, and the examples after them."""
        self.description = description
        width = max((len(command) for command, _ in examples), default=0)
        lines = [f"  {command:<{width}}  {purpose}".rstrip() for command, purpose in examples]
        self.epilog = "\n".join(["examples:", *lines]) if lines else None

    def actions(self, *, required: bool = True) -> argparse._SubParsersAction[Parser]:
        """What takes the parsers of the words that may stand first, such as ``gc`` of a store.

        Args:
            required: Whether one must.
        """
        self._positionals.title = "actions"  # they have no other words
        return self.add_subparsers(
            dest="action", metavar="ACTION", required=required, prog=self.prog
        )

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            UsageError: Always; it says how to get help, and shows what was meant or a short usage.
        """
        usage = " ".join(self.format_usage().split())
        meant = self._meant(message)
        lines = [f"Did you mean {meant!r}?"] if meant else [usage] if len(usage) <= _SHOWN else []
        advice = "\n  ".join([*lines, f"Try: {self.prog} --help"])
        raise UsageError(message, file=self.prog, advice=advice)

    def _meant(self, message: str) -> str | None:
        """The option nearest to the first one that `message` calls unknown, if one is near."""
        from difflib import get_close_matches

        _, _, words = message.partition("unrecognized arguments: ")
        if not words.startswith("--"):
            return None
        word = words.split()[0].partition("=")[0]
        near = get_close_matches(word, sorted(self.long_options()), 1)
        return near[0] if near and near[0] != word else None

    def long_options(self) -> set[str]:
        """This parser's long options, and those of its actions."""
        found = {name for name in self._option_string_actions if name.startswith("--")}
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 -- it has no other name
                for parser in action.choices.values():
                    found |= parser.long_options()
        return found


def load(name: str) -> Command:
    """The module of the command called `name`."""
    module: Command = import_module(f"kolm_build.surfaces.cli.{MODULES.get(name, name)}")  # type: ignore[assignment]
    return module


def parser_of(name: str) -> Parser:
    """The parser of the command called `name`."""
    parser = Parser(f"kolm {name}")
    load(name).describe(parser)
    return parser


def dispatch(argv: Sequence[str], terminal: Terminal) -> int:
    """Run the command that `argv` names; the exit status."""
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help", "help"):
        return _help(rest, terminal)
    if name in ("-V", "--version"):
        name = "version"
    if name not in COMMANDS:
        raise _unknown(name)
    args = parser_of(name).parsed(rest)
    return load(name).run(args, terminal)


def _help(rest: Sequence[str], terminal: Terminal) -> int:
    if rest:
        return dispatch([*rest, "--help"], terminal)
    terminal.say(overview())
    return 0


def overview() -> str:
    """The text of `kolm --help`."""
    lines = ["usage: kolm COMMAND [ARGUMENT ...]", "", "A model, byte for byte from its lock."]
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:<12}{summary}" for name, summary in commands.items()]
    lines += [
        "",
        "`kolm COMMAND --help` tells more and shows examples.",
        "Exit statuses, events and files are described in spec/cli.md.",
    ]
    return "\n".join(lines)


def _unknown(name: str) -> UsageError:
    from difflib import get_close_matches

    if name.startswith("-"):
        return UsageError(f"unknown option {name}", file="kolm", advice="Try: kolm --help")
    near = get_close_matches(name, COMMANDS, 1)
    advice = f"Did you mean {near[0]!r}?" if near else "Try: kolm --help"
    return UsageError(f"there is no command {name!r}", file="kolm", advice=advice)
