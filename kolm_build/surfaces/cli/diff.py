"""`kolm diff`."""

from __future__ import annotations

from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.surfaces.cli.options import add_json, add_project, add_store
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

if TYPE_CHECKING:
    from kolm_build.core.derivation import Derivation
    from kolm_build.core.diff import Change
    from kolm_build.core.digest import Digest
    from kolm_build.store.local import LocalStore
    from kolm_build.surfaces.compare import PathChange, Side


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Compare two artifacts, nodes, trees or derivations. Weights are compared tensor by\n"
        "tensor: which differ, where first, and by how much at most. Exits 0 if they are\n"
        "equal and 16 if not.",
        ("kolm diff a.kolm b.kolm", ""),
        ("kolm diff base merge-1", "two nodes of this project"),
        ("kolm diff b3:… b3:…", "two trees, or two derivations"),
    )
    parser.add_argument("a", metavar="A", help="FILE.kolm, node or digest")
    parser.add_argument("b", metavar="B", help="FILE.kolm, node or digest")
    add_project(parser)
    add_store(parser)
    add_json(parser, "one JSON object a difference")


def run(args: Namespace, terminal: Terminal) -> int:
    """Compare; 0 if equal."""
    from kolm_build.errors import Exit

    with ExitStack() as stack:
        changes = _changes(args, stack)
        for change in changes:
            if args.json:
                terminal.give(change.to_value())
            else:
                _say(change, terminal)
    if changes:
        return int(Exit.NOT_REPRODUCIBLE)
    if not args.json:
        terminal.say("identical")
    return 0


def _changes(args: Namespace, stack: ExitStack) -> list[PathChange | Change]:
    from kolm_build.core.derivation import Derivation
    from kolm_build.errors import UsageError
    from kolm_build.surfaces.compare import changes_between

    finder = _Finder(args, stack)
    before, after = finder.find(args.a), finder.find(args.b)
    if isinstance(before, Derivation) and isinstance(after, Derivation):
        return list(_derivations(before, after))
    if isinstance(before, Derivation) or isinstance(after, Derivation):
        raise UsageError("a derivation and a tree cannot be compared", file="kolm diff")
    return list(changes_between(before, after))


def _derivations(before: Derivation, after: Derivation) -> tuple[Change, ...]:
    from kolm_build.core.diff import changes

    return changes(before, after, old_node=str, new_node=str)


def _say(change: PathChange | Change, terminal: Terminal) -> None:
    from kolm_build.core.diff import Change

    if isinstance(change, Change):
        terminal.say(str(change))
        return
    terminal.say(f"{change.path}: {change.before or 'absent'} -> {change.after or 'absent'}")
    for tensor in change.tensors:
        terminal.say(f"  {tensor}")


class _Finder:
    """Finds what the command line names, opening what it needs once."""

    def __init__(self, args: Namespace, stack: ExitStack) -> None:
        self._args = args
        self._stack = stack
        self._store: LocalStore | None = None

    def find(self, text: str) -> Side | Derivation:
        from kolm_build.attest.container import Container
        from kolm_build.core.digest import Digest
        from kolm_build.surfaces.compare import side_of_artifact, side_of_tree

        if text.endswith(".kolm") or Path(text).is_file():
            container = self._stack.enter_context(Container.open(Path(text)))
            return side_of_artifact(container)
        store = self._opened()
        if text.startswith(Digest.prefix + ":"):
            digest = Digest.parse(text)
            if store.has_derivation(digest):
                return store.derivation(digest)
            return side_of_tree(digest, store)
        return side_of_tree(self._content(text, store), store)

    def _content(self, text: str, store: LocalStore) -> Digest:
        from kolm_build.surfaces.lookup import Look
        from kolm_build.surfaces.project import open_project

        project = open_project(self._args.project, lock=self._args.lock)
        return Look.at(project).content(text, store)

    def _opened(self) -> LocalStore:
        from kolm_build.surfaces.opening import open_store

        if self._store is None:
            self._store = self._stack.enter_context(open_store(self._args))
        return self._store
