"""`kolm copy`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kolm_build.surfaces.cli.options import (
    add_json,
    add_key,
    add_project,
    add_store,
    add_trust,
)
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping

    from kolm_build.attest.keys import SigningKey
    from kolm_build.core.derivation import OutputInput
    from kolm_build.core.digest import Digest
    from kolm_build.engine.events import OnEvent
    from kolm_build.store.local import LocalStore
    from kolm_build.surfaces.copying import Copied
    from kolm_build.surfaces.lookup import Look


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Copy what was built to a substituter, or from one, without building anything. What a\n"
        "target was made from goes along as signed claims; its bytes go with --closure. Only\n"
        "what is missing is copied, every byte is checked, and an interrupted copy goes on\n"
        "where it stopped. Addresses are file:FOLDER, http(s)://HOST/PATH (to read),\n"
        "s3://BUCKET/PREFIX?endpoint=URL and oci://HOST/NAME.",
        ("kolm copy --to file:///mnt/stick", "the recipe's targets"),
        ("kolm copy --to s3://models/cache train-1", "one node"),
        ("kolm copy --from https://cache.example/kolm package", "signed by whom you trust"),
        ("kolm copy --from file:stick b3:…", "a tree by its digest"),
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", metavar="URL", help="publish there, signed with your key")
    where.add_argument(
        "--from",
        metavar="URL",
        action="append",
        dest="sources",
        help="fetch from there (repeatable)",
    )
    parser.add_argument(
        "targets",
        metavar="TARGET",
        nargs="*",
        help="a node, node.output or a tree's digest (default: the recipe's targets)",
    )
    parser.add_argument(
        "--closure", action="store_true", help="also the outputs of all that a target is made from"
    )
    add_key(parser, "publish claims unsigned; nobody will believe them")
    add_trust(parser)
    add_project(parser)
    add_store(parser)
    add_json(parser, "events, one JSON object a line")


def run(args: Namespace, terminal: Terminal) -> int:
    """Copy."""
    from kolm_build.core.digest import Digest
    from kolm_build.surfaces.opening import open_store
    from kolm_build.surfaces.progress import shown_events

    trees = [Digest.parse(text) for text in args.targets if text.startswith("b3:")]
    names = [text for text in args.targets if not text.startswith("b3:")]
    look = _look(args) if names or not trees else None
    with open_store(args) as store, shown_events(terminal, json=args.json) as on_event:
        copying = _Copying(args, look, store, on_event, terminal)
        copied = copying.send(names, trees) if args.to else copying.receive(names, trees)
    _tell(copied, args, terminal)
    return 0


def _tell(copied: list[Copied], args: Namespace, terminal: Terminal) -> None:
    if args.json:
        for one in copied:
            terminal.give(one.to_value())
        terminal.give({"event": "done", "targets": {one.name: str(one.tree) for one in copied}})
        return
    for one in copied:
        terminal.say(f"{one.name}  {one.tree}")
    count = sum(one.bytes_copied for one in copied)
    terminal.tell(f"{count / 1e6:.1f} MB copied" if count else "nothing to copy", "dim")


def _key(args: Namespace) -> SigningKey | None:
    from kolm_build.surfaces.signing import find_key

    return find_key(args.key, args.passphrase_file)


def _look(args: Namespace) -> Look:
    from kolm_build.surfaces.lookup import Look
    from kolm_build.surfaces.project import open_project

    return Look.at(open_project(args.project, lock=args.lock))


@dataclass(frozen=True, slots=True)
class _Copying:
    """One run of the command.

    Attributes:
        args: The command line.
        look: The project, where a target is of one.
        store: The store.
        on_event: Told what happens.
        terminal: Where to say things.
    """

    args: Namespace
    look: Look | None
    store: LocalStore
    on_event: OnEvent
    terminal: Terminal

    def _wanted(self, names: list[str]) -> Mapping[str, OutputInput]:
        from kolm_build.surfaces.copying import wanted_outputs

        if self.look is None:
            return {}
        return wanted_outputs(self.look.instance, names, closure_too=self.args.closure)

    def send(self, names: list[str], trees: list[Digest]) -> list[Copied]:
        """Copy to the substituter."""
        from kolm_build.store.remote.place import Limits
        from kolm_build.surfaces.addresses import place_at
        from kolm_build.surfaces.copying import Sender, known_contents

        args, wanted, limits = self.args, self._wanted(names), Limits()
        unsigned = args.no_sign or self.look is None
        key = None if unsigned else _key(args)
        found = known_contents(self.look.instance, wanted, self.store) if self.look else {}
        place = place_at(args.to, limits)
        try:
            sender = Sender(self.store, place, limits=limits, on_event=self.on_event)
            copied = [sender.tree(name, tree) for name, tree in found.items()]
            copied += [sender.tree(str(tree), tree) for tree in trees]
            if self.look is not None:
                sender.claims(self.look.instance, wanted.values(), key)
        finally:
            place.close()
        if self.look is not None and key is None:
            self.terminal.tell("claims are not signed: nobody will believe them", "yellow")
        return copied

    def receive(self, names: list[str], trees: list[Digest]) -> list[Copied]:
        """Copy from the substituters."""
        from kolm_build.surfaces.copying import receive, receive_tree
        from kolm_build.surfaces.substituting import open_substitutes, warn_of_no_trust
        from kolm_build.surfaces.trusting import own_trust

        trust = own_trust(self.args.trust) if self.look else None
        if self.look:
            warn_of_no_trust(trust, self.terminal)
        opened = open_substitutes(
            self.args.sources, self.store, trust=trust, on_event=self.on_event
        )
        with opened as others:
            assert others is not None, "argparse asks for one"
            copied = [
                receive_tree(tree, self.store, others, on_event=self.on_event) for tree in trees
            ]
            if self.look is not None:
                wanted = self._wanted(names)
                copied += receive(
                    self.look.instance, wanted, self.store, others, on_event=self.on_event
                )
            return copied
