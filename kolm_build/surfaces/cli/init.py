"""`kolm init`."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Write a starter recipe, kolm.toml, with a few example rows beside it. It works as it\n"
        "is: `kolm lock` pins a small real model, `kolm build` tunes it on the rows.",
        ("kolm init", "in this folder"),
        ("kolm init triage", "in the new folder triage/"),
    )
    parser.add_argument(
        "folder",
        metavar="DIR",
        nargs="?",
        type=Path,
        default=Path(),
        help="where to, made if it is not there (default: this folder)",
    )
    parser.add_argument("--name", help="the model's name (default: the folder's)")


def run(args: Namespace, terminal: Terminal) -> int:
    """Write the files; none if one of them is there."""
    from kolm_build.core.name import parse_label
    from kolm_build.errors import InvalidRecordError, UsageError
    from kolm_build.surfaces.files import write_new
    from kolm_build.surfaces.places import RECIPE
    from kolm_build.surfaces.starter import ROWS, recipe_text

    folder: Path = args.folder
    name = args.name or _label(folder.absolute().name)
    try:
        parse_label(name)
    except InvalidRecordError as error:
        raise UsageError("not a model name", expected=error.expected, actual=repr(name)) from None
    files = {RECIPE: recipe_text(name), "rows.jsonl": ROWS}
    for file in files:
        if (folder / file).exists():
            raise UsageError(
                "a file is there already", file=str(folder / file), advice="Nothing was written."
            )
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        write_new(folder / file, text.encode())
        terminal.say(str(folder / file))
    where = "" if folder == Path() else f" -C {folder}"
    terminal.tell(f"next: kolm lock{where} && kolm build{where}")
    return 0


def _label(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "model"
