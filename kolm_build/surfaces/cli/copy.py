"""`kolm copy`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kolm_build.surfaces.cli.options import (
    add_json,
    add_key,
    add_project,
    add_store,
    add_trust,
)
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.cli.terminal import Terminal

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Mapping

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
    add_key(parser)
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
    copy = _send if args.to is not None else _receive
    with open_store(args) as store, shown_events(terminal, json=args.json) as on_event:
        copied = list(copy(args, look, names, trees, store, on_event, terminal))
    for one in copied:
        if args.json:
            terminal.give(one.to_value())
        else:
            terminal.say(f"{one.name}  {one.tree}")
    count = sum(one.bytes_copied for one in copied)
    if args.json:
        terminal.give({"event": "done", "targets": {one.name: str(one.tree) for one in copied}})
    else:
        terminal.tell(f"{count / 1e6:.1f} MB copied" if count else "nothing to copy", "dim")
    return 0


def _look(args: Namespace) -> Look:
    from kolm_build.surfaces.lookup import Look
    from kolm_build.surfaces.project import open_project

    return Look.at(open_project(args.project, lock=args.lock))


def _send(
    args: Namespace,
    look: Look | None,
    names: list[str],
    trees: list[Digest],
    store: LocalStore,
    on_event: OnEvent,
    terminal: Terminal,
) -> Iterable[Copied]:
    from kolm_build.store.remote.place import Limits
    from kolm_build.surfaces.copying import Sender, wanted_outputs
    from kolm_build.surfaces.signing import find_key
    from kolm_build.surfaces.substituting import place_at

    key = None if args.no_sign or look is None else find_key(args.key, args.passphrase_file)
    limits = Limits()
    wanted = wanted_outputs(look.instance, names, closure_too=args.closure) if look else {}
    found = _known(look, wanted, store) if look else {}
    place = place_at(args.to, limits)
    try:
        sender = Sender(store, place, limits=limits, on_event=on_event)
        for name, tree in {**found, **{str(tree): tree for tree in trees}}.items():
            yield sender.tree(name, tree)
        if look is not None:
            sender.claims(look.instance, wanted.values(), key)
            if key is None:
                terminal.tell("claims are not signed: nobody will believe them", "yellow")
    finally:
        place.close()


def _known(look: Look, wanted: Mapping[str, object], store: LocalStore) -> dict[str, Digest]:
    return {name: look.content(name, store) for name in wanted}


def _receive(
    args: Namespace,
    look: Look | None,
    names: list[str],
    trees: list[Digest],
    store: LocalStore,
    on_event: OnEvent,
    terminal: Terminal,
) -> Iterable[Copied]:
    from kolm_build.engine.events import Progress
    from kolm_build.surfaces.copying import receive, receive_tree, wanted_outputs
    from kolm_build.surfaces.substituting import open_substitutes, warn_of_no_trust
    from kolm_build.surfaces.trusting import own_trust

    trust = own_trust(args.trust) if look else None
    if look:
        warn_of_no_trust(trust, terminal)
    with open_substitutes(args.sources, store, trust=trust, on_event=on_event) as substitutes:
        assert substitutes is not None, "argparse asks for one"
        for tree in trees:

            def tell(done: int, total: int, name: str = str(tree)) -> None:
                on_event(Progress(node=name, done=done, total=total, unit="byte"))

            yield receive_tree(tree, store, substitutes, tell)
        if look is not None:
            wanted = wanted_outputs(look.instance, names, closure_too=args.closure)
            yield from receive(look.instance, wanted, store, substitutes, on_event=on_event)
