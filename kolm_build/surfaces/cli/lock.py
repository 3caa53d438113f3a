"""`kolm lock`."""

from __future__ import annotations

from argparse import SUPPRESS, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.surfaces.cli.options import (
    add_environment_source,
    add_json,
    add_project,
    add_store,
)
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

if TYPE_CHECKING:
    from kolm_build.core.explain import Cause
    from kolm_build.core.lock import Lock
    from kolm_build.core.lock_diff import LockChange
    from kolm_build.surfaces.project import Project


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Pin every input of the recipe by its hash, in kolm.lock: weights, data, code, the\n"
        "interpreter and every distribution. What is pinned already and comes from elsewhere\n"
        "stays as it is; what lies here is hashed anew.",
        ("kolm lock", "after a change of the recipe, the data or the environment"),
        ("kolm lock --check", "in CI: is the committed lock what would be locked?"),
        ("kolm lock --update base", "fetch one input again"),
        ("kolm lock --update code", "after an upgrade of kolm"),
        ("kolm lock --python old/bin/python", "the environment of another interpreter"),
        ("kolm lock --wheels pylock.toml", "the environment that these wheels make"),
        ("kolm lock diff", "what changed since the commit, and what it will rebuild"),
        ("kolm lock diff main", "the same against a branch"),
    )
    parser.usage = "kolm lock [OPTION ...]\n       kolm lock diff [A [B]]"
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 2 if the lock is not up to date"
    )
    parser.add_argument(
        "--update",
        metavar="NAME",
        action="append",
        default=[],
        help="look again at this input, at `environment`, `code` or `numerics`, whatever is locked",
    )
    add_environment_source(parser)
    parser.add_argument("--offline", action="store_true", help="never touch the network")
    parser.add_argument(
        "--sandbox",
        choices=("require", "none"),
        default="require",
        help="'none' lets fetches run openly",
    )
    add_project(parser)
    add_store(parser)
    add_json(parser, "events, one JSON object a line")
    below = parser.actions(required=False)
    diff = below.add_parser("diff", help="compare two locks")
    diff.tell_of(
        "Compare two locks: what differs, which nodes will be built again and why, and which\n"
        "cannot change. A and B are lock files or git revisions; B is the lock that is here\n"
        "and A the committed one unless you say otherwise.",
        ("kolm lock diff", ""),
        ("kolm lock diff HEAD~3 HEAD", ""),
        ("kolm lock diff old/kolm.lock kolm.lock --json", ""),
    )
    diff.add_argument("before", metavar="A", nargs="?", help="default: HEAD")
    diff.add_argument("after", metavar="B", nargs="?", help="default: kolm.lock")
    # SUPPRESS, because a default would overwrite what was given before the word "diff".
    diff.add_argument(
        "-C",
        "--project",
        metavar="DIR",
        default=SUPPRESS,
        help="folder of kolm.toml (default: the nearest one upwards)",
    )
    diff.add_argument("--json", action="store_true", default=SUPPRESS, help="one JSON object")


def run(args: Namespace, terminal: Terminal) -> int:
    """Lock, check, or compare."""
    if args.action == "diff":
        return _diff(args, terminal)
    return _lock(args, terminal)


def _lock(args: Namespace, terminal: Terminal) -> int:
    from kolm_build.core.lock import render_lock
    from kolm_build.core.numerics import PORTABLE
    from kolm_build.surfaces.building import Options
    from kolm_build.surfaces.files import write_whole
    from kolm_build.surfaces.locking import NUMERICS, Locking
    from kolm_build.surfaces.opening import open_store
    from kolm_build.surfaces.progress import shown_events
    from kolm_build.surfaces.project import open_project
    from kolm_build.surfaces.taking import Source, take

    newest = PORTABLE if NUMERICS in args.update else None
    project = open_project(args.project, lock=args.lock, numerics_class=newest)
    before = _before(project)
    with open_store(args) as store, shown_events(terminal, json=args.json) as on_event:
        lock = Locking(
            project=project,
            before=before,
            update=args.update,
            environment=take(project.recipe.distributions, Source.of(args), store, terminal.tell),
            store=store,
            options=Options(sandbox=args.sandbox, offline=args.offline),
            on_event=on_event,
        ).run()
    text = render_lock(lock)
    is_same = before is not None and text == render_lock(before)
    if args.check:
        return _checked(project, before, lock, terminal)
    if not is_same:
        write_whole(project.lock_file, text.encode())
    _tell(project, before, lock, args, terminal)
    return 0


def _before(project: Project) -> Lock | None:
    from kolm_build.surfaces.project import read_lock

    return read_lock(project.lock_file) if project.lock_file.exists() else None


def _checked(project: Project, before: Lock | None, lock: Lock, terminal: Terminal) -> int:
    from kolm_build.core.lock_diff import lock_changes
    from kolm_build.errors import StaleLockError
    from kolm_build.surfaces.project import read_lock, shown_path

    found = lock_changes(before or read_lock(project.lock_file), lock)
    if not found:
        terminal.tell(f"{shown_path(project.lock_file)} is up to date")
        return 0
    first, more = found[0], len(found) - 1
    raise StaleLockError(
        "the lock is not what would be locked now"
        + (f" (and {_changes(more)} more)" if more else ""),
        file=shown_path(project.lock_file),
        where=f"{first.kind} {first.name}",
        expected=first.after or "absent",
        actual=first.before or "absent",
        advice="Run `kolm lock`, and look at `kolm lock diff`.",
    )


def _tell(
    project: Project, before: Lock | None, lock: Lock, args: Namespace, terminal: Terminal
) -> None:
    from kolm_build.core.lock_diff import lock_changes
    from kolm_build.surfaces.project import shown_path

    found = lock_changes(before, lock) if before else ()
    if args.json:
        changes = [change.to_value() for change in found]
        terminal.give({"changes": changes, "event": "locked", "new": before is None})
        return
    for change in found:
        terminal.say(str(change))
    file = shown_path(project.lock_file)
    if before is None:
        inputs, distributions = len(lock.inputs), len(lock.environment.distributions)
        terminal.tell(f"{file}: {inputs} inputs and {distributions} distributions locked")
    else:
        terminal.tell(f"{file}: {_changes(len(found))}")


def _changes(count: int) -> str:
    return f"{count} change{'' if count == 1 else 's'}" if count else "nothing changed"


def _diff(args: Namespace, terminal: Terminal) -> int:
    from kolm_build.core.explain import explain
    from kolm_build.core.lock_diff import effects, lock_changes
    from kolm_build.surfaces.places import find_root, lock_file
    from kolm_build.surfaces.revision import read_revision

    root = Path(find_root(args.project))
    lock = Path(lock_file(args.lock, root))
    before = read_revision(args.before, root, lock=lock, default="HEAD")
    after = read_revision(args.after, root, lock=lock, default=None)
    found = lock_changes(before.lock, after.lock)
    old, new = before.instance(), after.instance()
    known = old is not None and new is not None
    nodes = effects(old.nodes, new.nodes) if old and new else {}
    causes = explain(old.nodes, new.nodes).causes if old and new else ()
    if args.json:
        terminal.give(
            {
                "causes": [cause.to_value() for cause in causes],
                "changes": [change.to_value() for change in found],
                "nodes": nodes if known else None,
            }
        )
        return 0
    _say_diff(found, nodes, causes, terminal)
    if not known:
        terminal.tell("the recipe of one side is not here: what will be built is not known")
    return 0


def _say_diff(
    found: Sequence[LockChange],
    nodes: Mapping[str, str],
    causes: Sequence[Cause],
    terminal: Terminal,
) -> None:
    for change in found:
        terminal.say(str(change))
    if not found:
        terminal.say("no difference")
    for cause in causes:
        parts = ", ".join(change.part for change in cause.changes) or "new"
        terminal.say(f"because: {cause.node} ({parts})")
    for effect in dict.fromkeys(nodes.values()):
        names = ", ".join(name for name, its in nodes.items() if its == effect)
        terminal.say(f"{effect}: {names}", _STYLES.get(effect, ""))


_STYLES = {"cannot change": "green", "may change": "yellow", "gone": "red", "new": "yellow"}
