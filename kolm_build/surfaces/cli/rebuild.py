"""`kolm rebuild`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.surfaces.cli.options import (
    add_building,
    add_json,
    add_lock,
    add_passphrase,
    build_options,
)
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

if TYPE_CHECKING:
    from kolm_build.attest.keys import SigningKey
    from kolm_build.engine.scheduler import Realised
    from kolm_build.store.local import LocalStore
    from kolm_build.surfaces.attesting import Attestor
    from kolm_build.surfaces.building import Prepared
    from kolm_build.surfaces.rebuilding import Stores
    from kolm_build.surfaces.results import Targets


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Build everything again in an empty store and compare: with kolm.outputs, or with an\n"
        "artifact, which holds all that is needed to rebuild it. Says `identical`, or names the\n"
        "first node, file and tensor that differ and exits 16.",
        ("kolm rebuild", "the project in this folder"),
        ("kolm rebuild triage.kolm", "an artifact, from what it says of itself"),
        ("kolm rebuild triage.kolm --store /mnt/new", "and keep the new store"),
        ("kolm rebuild --attest", "and sign that you rebuilt it, for `kolm copy --to`"),
    )
    parser.add_argument(
        "what", metavar="PROJECT|FILE.kolm", nargs="?", type=Path, help="default: this folder"
    )
    parser.add_argument(
        "--store", metavar="DIR", type=Path, help="build in this new store and keep it"
    )
    parser.add_argument(
        "--against",
        metavar="DIR",
        type=Path,
        help="the store with the first build, to name what differs (default: your store)",
    )
    parser.add_argument(
        "--attest",
        action="store_true",
        help="sign what was rebuilt, whether it is the same or not; kept in the first store",
    )
    parser.add_argument(
        "--key", metavar="FILE", help="what --attest signs with (default: ~/.config/kolm/key.pem)"
    )
    parser.add_argument(
        "--trust",
        metavar="FILE",
        help="whose claims show the grade, where the lock asks for one (default: your trust file)",
    )
    add_passphrase(parser)
    add_lock(parser)
    add_building(parser)
    add_json(parser, "events, one JSON object a line")


def run(args: Namespace, terminal: Terminal) -> int:
    """Rebuild and compare."""
    _check_attest(args)
    if args.what is not None:
        _check_there(args.what)
        if args.what.is_file():
            return _artifact(args, terminal)
    return _project(args, terminal)


def _check_there(what: Path) -> None:
    from kolm_build.errors import UsageError

    if not what.exists():
        raise UsageError(
            "no such file or folder",
            file=str(what),
            advice="Name an artifact, or the folder of a kolm.toml.",
        )


def _check_attest(args: Namespace) -> None:
    from kolm_build.errors import NoSandboxError, UsageError

    if args.key is not None and not args.attest:
        raise UsageError("a key, and nothing to sign", file="--key", advice="Add --attest.")
    if args.attest and args.sandbox == "none":
        raise NoSandboxError(
            "what was rebuilt without a sandbox is not signed",
            file="--sandbox=none",
            advice="Leave out one of the two.",
        )


def _key(args: Namespace) -> SigningKey | None:
    """What signs; None where nothing is to be signed."""
    from kolm_build.errors import KeyFileError
    from kolm_build.surfaces.places import default_key
    from kolm_build.surfaces.signing import find_key

    if not args.attest:
        return None
    key = find_key(args.key, args.passphrase_file)
    if key is None:
        raise KeyFileError(
            "there is no key to sign with", file=default_key(), advice="`kolm key new` makes one."
        )
    return key


def _attestor(
    args: Namespace, key: SigningKey | None, new: LocalStore, start: Path, terminal: Terminal
) -> Attestor:
    from kolm_build.surfaces.attesting import Attestor
    from kolm_build.surfaces.places import store_root

    first = Path(store_root(args.against, start))
    return Attestor(key=key, new=new, first=first, terminal=terminal)


def _artifact(args: Namespace, terminal: Terminal) -> int:
    from kolm_build.attest.container import Container
    from kolm_build.core.instantiation.instance import PACKAGE
    from kolm_build.errors import UsageError
    from kolm_build.surfaces.rebuilding import (
        Stores,
        bring_fetched,
        compare_artifact,
        fresh_store,
        prepare_artifact,
    )

    if args.sandbox == "none":
        raise UsageError(
            "code that came inside a file is run in the sandbox only", file="--sandbox=none"
        )
    key = _key(args)
    with ExitStack() as stack:
        container = stack.enter_context(Container.open(args.what))
        old = stack.enter_context(_old_store(args, Path.cwd()))
        new = stack.enter_context(fresh_store(args.store))
        prepared = prepare_artifact(container, new)
        if args.offline and old is not None:
            bring_fetched(prepared, new, old)
        stores = Stores(new=new, old=old)
        realised = _build(prepared, prepared.wanted([PACKAGE]), args, stores, terminal)
        attestor = _attestor(args, key, new, Path.cwd(), terminal)
        with attestor.compared(prepared, realised):
            found = compare_artifact(container, realised, prepared, stores)
        status = _identical({PACKAGE: found}, args, terminal)
        _check_grade(prepared, prepared.wanted([PACKAGE]), args, Path.cwd(), terminal)
        return status


def _project(args: Namespace, terminal: Terminal) -> int:
    from kolm_build.surfaces.building import prepare
    from kolm_build.surfaces.project import open_project
    from kolm_build.surfaces.rebuilding import (
        Stores,
        bring_code,
        bring_fetched,
        compare_project,
        fresh_store,
    )

    key = _key(args)
    project = open_project(args.what, lock=args.lock)
    with ExitStack() as stack:
        old = stack.enter_context(_old_store(args, project.root))
        new = stack.enter_context(fresh_store(args.store))
        if old is not None:
            bring_code(project, new, old)
        prepared = prepare(project, new)
        if args.offline and old is not None:
            bring_fetched(prepared, new, old)
        wanted = prepared.wanted(())
        stores = Stores(new=new, old=old)
        realised = _build(prepared, wanted, args, stores, terminal)
        attestor = _attestor(args, key, new, project.root, terminal)
        with attestor.compared(prepared, realised):
            found = compare_project(prepared, wanted, realised, stores)
        status = _identical({name: str(one) for name, one in found.items()}, args, terminal)
        _check_grade(prepared, wanted, args, project.root, terminal)
        return status


def _check_grade(
    prepared: Prepared, wanted: Targets, args: Namespace, start: Path, terminal: Terminal
) -> None:
    """Refuse what the first store's claims, those just signed among them, show too little of."""
    if prepared.lock.minimum_grade is None:
        return
    from kolm_build.store.local import LocalStore
    from kolm_build.surfaces.grading import check_grade
    from kolm_build.surfaces.places import store_root

    with LocalStore.open(Path(store_root(args.against, start)), read_only=True) as store:
        check_grade(prepared, wanted.values(), args, store=store, terminal=terminal)


@contextmanager
def _old_store(args: Namespace, start: Path) -> Iterator[LocalStore | None]:
    """The store of the first build, for reading; None where there is none."""
    from kolm_build.errors import ReadOnlyStoreError
    from kolm_build.store.local import LocalStore
    from kolm_build.surfaces.places import store_root

    try:
        store = LocalStore.open(Path(store_root(args.against, start)), read_only=True)
    except ReadOnlyStoreError:
        if args.against is not None:
            raise
        yield None
        return
    with store:
        yield store


def _build(
    prepared: Prepared, wanted: Targets, args: Namespace, stores: Stores, terminal: Terminal
) -> Realised:
    from kolm_build.surfaces.building import build
    from kolm_build.surfaces.progress import shown_events

    options = build_options(args)
    with shown_events(terminal, json=args.json) as on_event:
        return build(
            prepared,
            wanted,
            stores.new,
            options=options,
            on_event=on_event,
            beside=() if stores.old is None else (stores.old,),
        )


def _identical(found: Mapping[str, str], args: Namespace, terminal: Terminal) -> int:
    if args.json:
        terminal.give({"event": "done", "identical": True, "targets": dict(found)})
    else:
        for name, digest in found.items():
            terminal.say(f"identical: {name}  {digest}", "green")
    return 0
