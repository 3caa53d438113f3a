"""`kolm import`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.surfaces.cli.options import add_json, add_store
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

if TYPE_CHECKING:
    from kolm_build.store.packfile import PackFile
    from kolm_build.store.unpacker import Taken
    from kolm_build.surfaces.packing import Restored


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Check a pack, every byte of it, and take it into the store: all of it or nothing. A\n"
        "killed import goes on where it stopped. What a pack says was built from what is not\n"
        "believed unless you ask for it: a rebuild finds out.",
        ("kolm import triage.kolmpack", "into the store"),
        ("kolm import triage.kolmpack --project triage", "and write recipe, lock, artifact there"),
        ("kolm import triage.kolmpack --check", "say whether it holds, and change nothing"),
    )
    parser.add_argument("file", metavar="FILE.kolmpack", type=Path, help="the pack")
    parser.add_argument("--check", action="store_true", help="check it and stop")
    parser.add_argument(
        "--project", metavar="DIR", type=Path, help="write the project into this new folder"
    )
    parser.add_argument(
        "--accept-claims",
        action="store_true",
        help="believe its claims: builds then use its outputs without building them",
    )
    add_store(parser)
    add_json(parser, "one JSON object with what came")


def run(args: Namespace, terminal: Terminal) -> int:
    """Check it, or take it in."""
    from kolm_build.store.packfile import PackFile

    with PackFile.open(args.file) as file:
        return _check(file, args, terminal) if args.check else _take(file, args, terminal)


def _check(file: PackFile, args: Namespace, terminal: Terminal) -> int:
    from kolm_build.errors import KolmError
    from kolm_build.store.unpacker import check_pack
    from kolm_build.surfaces.cli.export import parts_value, tell_parts
    from kolm_build.surfaces.packing import check_environments
    from kolm_build.surfaces.percent import shown_percent

    try:
        with shown_percent(terminal, file.head.size_bytes, "checked") as on_bytes:
            checked = check_pack(file, on_bytes, judge=check_environments)
    except KolmError as error:
        raise error.in_file(str(args.file)) from None
    if args.json:
        terminal.give(
            {
                "holds": True,
                "needs": len(file.head.needs),
                "pack": str(file.id),
                "parts": parts_value(checked.shares),
            }
        )
        return 0
    tell_parts(checked.shares, terminal)
    terminal.say(f"{args.file} holds  {file.id}", "green")
    if file.head.needs:
        terminal.tell(f"thin: {len(file.head.needs)} objects are of an earlier delivery")
    return 0


def _take(file: PackFile, args: Namespace, terminal: Terminal) -> int:
    from kolm_build.errors import KolmError
    from kolm_build.surfaces.opening import open_store
    from kolm_build.surfaces.packing import check_environments, check_free, restore
    from kolm_build.surfaces.percent import shown_percent

    folder = args.project
    if folder is not None:
        check_free(folder)
        args.project = None  # it says where to write, and not where the store is
    with open_store(args) as store:
        try:
            with shown_percent(terminal, file.head.size_bytes, "checked") as on_bytes:
                taken = store.take_pack(
                    file,
                    accept_claims=args.accept_claims,
                    on_bytes=on_bytes,
                    judge=check_environments,
                )
        except KolmError as error:
            raise error.in_file(str(args.file)) from None
        restored = None if folder is None else restore(file.head, folder, store)
    _tell(taken, restored, args, terminal)
    return 0


def _tell(taken: Taken, restored: Restored | None, args: Namespace, terminal: Terminal) -> None:
    from kolm_build.surfaces.cli.export import parts_value, tell_parts

    if args.json:
        terminal.give(
            {
                "claims": taken.claims,
                "claims_not_taken": taken.claims_left,
                "new_objects": taken.new_objects,
                "pack": str(taken.id),
                "parts": parts_value(taken.shares),
                "project": _project_value(restored),
                "resumed_bytes": taken.resumed_bytes,
                "root": taken.root,
            }
        )
        return
    tell_parts(taken.shares, terminal)
    terminal.say(f"imported {taken.new_objects} new objects  {taken.id}", "green")
    if taken.claims_left:
        terminal.tell(
            f"{taken.claims_left} claims are not believed: a build makes everything again;"
            " --accept-claims believes them"
        )
    if restored is not None:
        terminal.say(f"{restored.folder}: {', '.join(restored.files)}")
        for source in restored.elsewhere:
            terminal.tell(f"outside the project, and only in the store: {source}")


def _project_value(restored: Restored | None) -> object:
    if restored is None:
        return None
    return {
        "artifact": None if restored.artifact is None else str(restored.artifact),
        "elsewhere": list(restored.elsewhere),
        "files": list(restored.files),
        "path": str(restored.folder),
    }
