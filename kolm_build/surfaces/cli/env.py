"""`kolm env`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
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
    from kolm_build.core.environment import Environment
    from kolm_build.engine.stored import Stored
    from kolm_build.store.local import LocalStore


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "The environment that a lock names: interpreter and distributions, each by its digest.\n"
        "Taken into the store it travels in packs, and a machine that has not installed it\n"
        "builds with it from the store.",
        ("kolm env list", "the environments in the store"),
        ("kolm env show", "what is locked"),
        ("kolm env diff", "against what is installed here"),
        ("kolm env add", "take the locked environment into the store"),
        ("kolm env check", "re-hash what the store holds of it"),
    )
    below = parser.actions()
    every = below.add_parser("list", help="list the environments in the store")
    every.tell_of("List the environments in the store.", ("kolm env list", ""))
    show = below.add_parser("show", help="show what is locked")
    show.tell_of(
        "Show the locked environment, and the system's libraries that the store holds with it.",
        ("kolm env show", ""),
    )
    diff = below.add_parser("diff", help="compare it with what is installed")
    diff.tell_of(
        "Compare the locked environment with what is installed here. Exits 1 if they differ.",
        ("kolm env diff", ""),
    )
    check = below.add_parser("check", help="re-hash what the store holds of it")
    check.tell_of(
        "Hash every file of the locked environment in the store again, both ways.",
        ("kolm env check", ""),
    )
    add = below.add_parser("add", help="take it into the store")
    add.tell_of(
        "Take the locked environment, as it is installed here, into the store: distributions,\n"
        "interpreter, and the system's libraries that they need.",
        ("kolm env add", ""),
        ("kolm env add --python old/bin/python", "as it is installed there"),
        ("kolm env add --wheels pylock.toml", "from wheels: nothing is installed"),
        ("kolm env add --wheels pylock.toml --find-links wheels --offline", "from a stick"),
    )
    for action in (diff, add):
        add_environment_source(action)
        action.add_argument("--offline", action="store_true", help="fetch no wheel")
    for action in (show, diff, check, add):
        add_project(action)
    for action in (every, show, diff, check, add):
        add_store(action)
        add_json(action, "one JSON object")


def run(args: Namespace, terminal: Terminal) -> int:
    """Do what `args.action` says."""
    from kolm_build.surfaces.opening import open_store

    actions = {"list": _list, "show": _show, "diff": _diff, "check": _check, "add": _add}
    with open_store(args) as store:
        return actions[args.action](args, terminal, store)


def _list(args: Namespace, terminal: Terminal, store: LocalStore) -> int:
    from kolm_build.engine.stored import every

    for stored in every(store):
        environment = stored.environment
        count = len(environment.distributions)
        if args.json:
            terminal.give(
                {
                    "distributions": count,
                    "environment": str(environment.digest),
                    "python": environment.python,
                    "tree": str(stored.tree),
                }
            )
        else:
            terminal.say(
                f"{environment.digest}  python {environment.python}, {count} distributions"
            )
    return 0


def _show(args: Namespace, terminal: Terminal, store: LocalStore) -> int:
    from kolm_build.engine.stored import find, native_names

    locked = _locked(args)
    stored = find(store, locked.digest)
    native = () if stored is None else native_names(store, stored)
    if args.json:
        terminal.give(
            {
                "distributions": [
                    {"content": str(one.content), "name": one.name, "version": one.version}
                    for one in locked.distributions
                ],
                "environment": str(locked.digest),
                "interpreter": str(locked.interpreter),
                "native": {path: str(node.sha256) for path, node in native},
                "python": locked.python,
                "tree": None if stored is None else str(stored.tree),
            }
        )
        return 0
    terminal.say(f"environment  {locked.digest}")
    terminal.say(f"python {locked.python}  {locked.interpreter}")
    for one in locked.distributions:
        terminal.say(f"{one.name} {one.version}  {one.content}")
    for path, node in native:
        terminal.say(f"system {path}  {node.b3}")
    if stored is None:
        terminal.tell("not in the store: `kolm env add` takes it in where it is installed")
    return 0


def _diff(args: Namespace, terminal: Terminal, store: LocalStore) -> int:
    from kolm_build.engine.environment import InstalledEnvironment
    from kolm_build.errors import Exit
    from kolm_build.surfaces.taking import Source

    locked, source = _locked(args), Source.of(args)
    with source.interpreter(store, terminal.tell) as interpreter:
        memo = store if source.wheels is None else None
        installed = InstalledEnvironment([locked], memo=memo, interpreter=interpreter)
        found = installed.differences(locked.digest)
    if args.json:
        lines = [{"installed": actual, "locked": expected} for expected, actual in found]
        terminal.give({"differences": lines, "environment": str(locked.digest)})
    else:
        for expected, actual in found:
            terminal.say(f"- {expected}", "red")
            terminal.say(f"+ {actual}", "green")
        if not found:
            terminal.say("what is installed is what is locked", "green")
    return int(Exit.MACHINE) if found else 0


def _check(args: Namespace, terminal: Terminal, store: LocalStore) -> int:
    from kolm_build.engine.stored import check_site

    stored = _stored(args, store)
    check_site(store, stored)
    count = size_bytes = 0
    for size in _rehashed(store, stored):
        count, size_bytes = count + 1, size_bytes + size
    if args.json:
        terminal.give(
            {
                "bytes_hashed": size_bytes,
                "environment": str(stored.environment.digest),
                "files": count,
                "sound": True,
            }
        )
    else:
        from kolm_build.surfaces.cli.store import size as shown

        terminal.say(f"{count} files, {shown(size_bytes)}: sound", "green")
    return 0


def _rehashed(store: LocalStore, stored: Stored) -> Iterator[int]:
    """Hash every file of an environment both ways; the sizes."""
    from kolm_build.engine.site import below
    from kolm_build.errors import CorruptObjectError

    nodes = {node.b3: (path, node) for path, node in below(store, stored.tree)}
    for b3, (path, node) in sorted(nodes.items()):
        blob = store.hashed(b3)
        if (blob.b3, blob.sha256) != (node.b3, node.sha256):
            raise CorruptObjectError(
                "a file of the environment changed in the store",
                where=path,
                expected=f"{node.b3}, {node.sha256}",
                actual=f"{blob.b3}, {blob.sha256}",
                advice="`kolm store fsck --repair`, then `kolm env add` or `kolm import` again.",
            )
        yield blob.size_bytes


def _add(args: Namespace, terminal: Terminal, store: LocalStore) -> int:
    from kolm_build.engine.site import below
    from kolm_build.engine.stored import find
    from kolm_build.surfaces.taking import Source, take_locked

    locked, source = _locked(args), Source.of(args)
    stored = find(store, locked.digest)
    if stored is None:
        stored = take_locked(locked, source, store, terminal.tell)
    sizes = {node.b3: node.size_bytes for _, node in below(store, stored.tree)}
    if args.json:
        terminal.give(
            {
                "bytes": sum(sizes.values()),
                "environment": str(locked.digest),
                "files": len(sizes),
                "tree": str(stored.tree),
            }
        )
    else:
        from kolm_build.surfaces.cli.store import size

        terminal.say(f"{size(sum(sizes.values()))} in {len(sizes)} files  {locked.digest}", "green")
    return 0


def _locked(args: Namespace) -> Environment:
    from kolm_build.surfaces.project import open_project, read_lock

    return read_lock(open_project(args.project, lock=args.lock).lock_file).environment


def _stored(args: Namespace, store: LocalStore) -> Stored:
    from kolm_build.engine.stored import find
    from kolm_build.errors import MissingObjectError

    locked = _locked(args)
    stored = find(store, locked.digest)
    if stored is None:
        raise MissingObjectError(
            "the environment is not in the store",
            expected=str(locked.digest),
            advice="`kolm env add` takes it in where it is installed.",
        )
    return stored
