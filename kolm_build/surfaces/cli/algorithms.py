"""`kolm algorithms`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kolm_build.surfaces.cli.options import add_json
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

if TYPE_CHECKING:
    from kolm_build.core.catalogue.algorithm import Algorithm, Parameter, Role


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Show what a stage of a recipe can train with: objectives (what is minimised),\n"
        "adapters (which numbers may change) and optimisers (how they change); and the methods\n"
        "of `kolm federated`.",
        ("kolm algorithms list", "all of them, by family"),
        ("kolm algorithms show dpo", "one: paper, data, formula, parameters, a recipe"),
    )
    below = parser.actions()
    listed = below.add_parser("list", help="print the catalogue")
    listed.tell_of(
        "Print every algorithm by family: its name in a recipe, what it is, its paper.",
        ("kolm algorithms list", ""),
        ("kolm algorithms list distillation", "those with this text"),
        ("kolm algorithms list --json", "one JSON object a line"),
    )
    listed.add_argument("text", nargs="?", default="", metavar="TEXT", help="show these only")
    add_json(listed, "one JSON object an algorithm")
    shown = below.add_parser("show", help="print all about one algorithm")
    shown.tell_of(
        "Print all that the catalogue says of one algorithm, and how a recipe names it.",
        ("kolm algorithms show grpo", ""),
        ("kolm algorithms show dora", "an adapter"),
    )
    shown.add_argument("name", metavar="NAME", help="its name in a recipe")
    add_json(shown, "one JSON object")


def run(args: Namespace, terminal: Terminal) -> int:
    """Do what `args.action` says."""
    return {"list": _list, "show": _show}[args.action](args, terminal)


def _list(args: Namespace, terminal: Terminal) -> int:
    from kolm_build.core.catalogue.table import ALGORITHMS

    text = args.text.lower()
    found = [row for row in ALGORITHMS.values() if text in _words(row)]
    if args.json:
        for row in found:
            terminal.give(_value(row))
        return 0
    for family in dict.fromkeys(row.family for row in found):
        members = [row for row in found if row.family == family]
        terminal.say(f"{family}", "bold")
        for row in members:
            terminal.say(f"  {row.id:<20} {row.title}  [{row.paper}]")
    terminal.say(f"{len(found)} of {len(ALGORITHMS)} algorithms")
    return 0


def _words(row: Algorithm) -> str:
    return f"{row.id} {row.family} {row.axis} {row.title} {row.paper}".lower()


def _show(args: Namespace, terminal: Terminal) -> int:
    from kolm_build.core.bounded import unknown_name
    from kolm_build.core.catalogue.table import ALGORITHMS

    if args.name not in ALGORITHMS:
        raise unknown_name("algorithm", args.name, ALGORITHMS)
    row = ALGORITHMS[args.name]
    if args.json:
        terminal.give(_value(row))
        return 0
    terminal.say(f"{row.id}: {row.title}", "bold")
    for name, text in _facts(row):
        terminal.say(f"  {name:<13}  {text}")
    _show_parts("needs", [_role_line(role) for role in row.roles], terminal)
    _show_parts("parameters", [_parameter_line(one) for one in row.parameters], terminal)
    _show_parts("in a recipe", list(_recipe(row)), terminal)
    return 0


def _facts(row: Algorithm) -> Sequence[tuple[str, str]]:
    return [
        ("axis", row.axis),
        ("family", row.family),
        ("paper", row.paper),
        ("minimises" if row.axis == "objective" else "does", row.minimises),
        ("data", row.schema),
        ("cost a token", row.passes),
        ("backed by", row.backing),
        ("compared with", row.oracle),
        ("same bits in", ", ".join(row.certified)),
    ]


def _show_parts(title: str, lines: Sequence[str], terminal: Terminal) -> None:
    if lines:
        terminal.say(f"{title}:")
        for line in lines:
            terminal.say(f"  {line}")


def _role_line(role: Role) -> str:
    need = "" if role.required else ", optional"
    if role.used_with is not None:
        need = ", with {} = {}".format(*role.used_with)
    if role.recorded:
        need = ", or recorded answers"
    return f"{role.name} ({role.kind}{need}): {role.help}"


def _parameter_line(one: Parameter) -> str:
    return f"{one.name} = {_toml(one.default)}  # {one.help}{_bounds(one)}"


def _bounds(one: Parameter) -> str:
    from kolm_build.core.catalogue.algorithm import Choice, Decimal, Integer

    if isinstance(one, Choice):
        return f": {' or '.join(one.options)}"
    if isinstance(one, Decimal):
        return f" (0 to {one.most})"
    if isinstance(one, Integer):
        return f" ({one.least} or more)"
    return ""


def _toml(value: str | int) -> str:
    return str(value) if isinstance(value, int) else f'"{value}"'


def _recipe(row: Algorithm) -> Iterator[str]:
    """How a stage names `row`, or a federation.toml, in TOML."""
    if row.axis == "federation":
        yield "[plan]  # of a federation.toml"
        yield f'method = "{row.id}"'
        return
    yield "[[train]]"
    yield f'algorithm = "{row.id if row.axis == "objective" else "sft"}"'
    if row.axis != "objective":
        yield f'{row.axis} = "{row.id}"'
    elif row.schema not in ("answers", "none"):
        yield f'rows = "NAME"  # of a [sets.NAME] with schema = "{row.schema}"'
    defaults = {one.name: one.default for one in row.parameters}
    for role in row.roles:
        if role.needed(defaults):
            yield f"{role.name} = {_example(role)}"
    if any(role.kind == "adapters" for role in row.roles):
        yield 'from = "base"  # what those stages start from'


def _example(role: Role) -> str:
    return {
        "logits": '"base"',
        "model": '"base"',
        "models": '["base", "train-1"]',
        "adapters": '["train-1", "train-2"]',
        "code": f'"{role.name}.py"',
        "data": f'"{role.name}.jsonl"',
    }[role.kind]


def _value(row: Algorithm) -> dict[str, object]:
    return {
        "axis": row.axis,
        "backing": row.backing,
        "certified": list(row.certified),
        "family": row.family,
        "id": row.id,
        "minimises": row.minimises,
        "oracle": row.oracle,
        "paper": row.paper,
        "parameters": [
            {"default": one.default, "help": one.help, "name": one.name} for one in row.parameters
        ],
        "passes": row.passes,
        "roles": [
            {"help": role.help, "kind": role.kind, "name": role.name, "required": role.required}
            for role in row.roles
        ],
        "schema": row.schema,
        "step": row.step,
        "title": row.title,
    }
