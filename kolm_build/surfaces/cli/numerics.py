"""`kolm numerics`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.surfaces.cli.options import add_json
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

if TYPE_CHECKING:
    from kolm_build.numerics.certified import Operator
    from kolm_build.numerics.coverage import Use


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Show what the numerics class portable-1 certifies: operations of PyTorch that give\n"
        "the same bits on every machine. A portable build reaches no others.",
        ("kolm numerics list softmax", "operations with 'softmax' in their name or reason"),
        ("kolm numerics check ./model", "the operations that a model uses"),
    )
    below = parser.actions()
    listed = below.add_parser("list", help="print the table of certified operations")
    listed.tell_of(
        "Print every certified operation: exact (PyTorch's kernel), composed (of others in the\n"
        "table), decomposed (the same, above autograd) or replaced (a kernel of this\n"
        "project), and why.",
        ("kolm numerics list", ""),
        ("kolm numerics list embedding", "those with this text"),
        ("kolm numerics list --json", "one JSON object a line"),
    )
    listed.add_argument("text", nargs="?", default="", metavar="TEXT", help="show these only")
    add_json(listed, "one JSON object an operation")
    checked = below.add_parser("check", help="show how a model's operations are certified")
    checked.tell_of(
        "Make the model of a folder or artifact with random weights, train it for one step,\n"
        "let it generate, and show how each operation is certified. The exit status is 8 if\n"
        "one is not. Memory: four times the weights.",
        ("kolm numerics check ./model", "what is uncertified, and where"),
        ("kolm numerics check triage.kolm --all", "every operation and the modules using it"),
    )
    checked.add_argument("model", metavar="FOLDER|FILE.kolm", type=Path, help="the model")
    checked.add_argument("--all", action="store_true", help="show certified operations, too")
    add_json(checked, "one JSON object an operation and place")


def run(args: Namespace, terminal: Terminal) -> int:
    """Do what `args.action` says."""
    return {"list": _list, "check": _check}[args.action](args, terminal)


def _list(args: Namespace, terminal: Terminal) -> int:
    from kolm_build.numerics.certified import table

    text = args.text.lower()
    found = [
        one for one in table().values() if text in f"{one.name} {one.section} {one.why}".lower()
    ]
    if args.json:
        for one in found:
            terminal.give(_value(one))
        return 0
    _show_table(found, terminal)
    terminal.say(f"{len(found)} of {len(table())} certified operations")
    return 0


def _value(one: Operator) -> dict[str, str]:
    return {
        "condition": one.condition,
        "how": one.how,
        "operator": one.name,
        "section": one.section,
        "why": one.why,
    }


def _show_table(found: Sequence[Operator], terminal: Terminal) -> None:
    from kolm_build.numerics.certified import CONDITIONS

    for section in dict.fromkeys(one.section for one in found):
        members = [one for one in found if one.section == section]
        terminal.say(f"{section}: {members[0].how}. {members[0].why}")
        for one in members:
            condition = f"  if: {CONDITIONS[one.condition]}" if one.condition else ""
            terminal.say(f"  {one.name}{condition}")


def _check(args: Namespace, terminal: Terminal) -> int:
    from kolm_build.errors import Exit
    from kolm_build.numerics.coverage import uncertified
    from kolm_build.runtime.coverage import operations_of

    uses = operations_of(args.model)
    refused = uncertified(uses)
    shown = uses if args.all else refused
    if args.json:
        for use in shown:
            terminal.give(
                {
                    "calls": use.calls,
                    "dtypes": list(use.dtypes),
                    "how": use.how,
                    "operator": use.operator,
                    "place": use.place,
                }
            )
    else:
        _show_uses(shown, terminal)
        terminal.say(_summary(uses), "red" if refused else "green")
    return int(Exit.BUILD) if refused else 0


def _show_uses(uses: Sequence[Use], terminal: Terminal) -> None:
    width = max((len(use.operator) for use in uses), default=0)
    for use in uses:
        place = use.place or "outside of any module"
        types = " ".join(use.dtypes) or "-"
        line = f"{use.operator:<{width}}  {use.how:<11}  {use.calls:>6} x  {types:<14}  {place}"
        terminal.say(line, "red" if use.how == "uncertified" else "")


def _summary(uses: Sequence[Use]) -> str:
    counts = {how: len({use.operator for use in uses if use.how == how}) for how in _HOWS}
    return ", ".join(f"{count} {how}" for how, count in counts.items())


_HOWS = ("exact", "composed", "decomposed", "replaced", "own", "uncertified")
