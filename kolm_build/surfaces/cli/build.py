"""`kolm build`."""

from __future__ import annotations

import os

from kolm_build.surfaces.cli.options import (
    add_building,
    add_json,
    add_key,
    add_project,
    add_store,
    add_substituters,
    add_target,
    build_options,
)
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from kolm_build.attest.keys import SigningKey
    from kolm_build.engine.events import OnEvent
    from kolm_build.engine.protocol import Substitutes
    from kolm_build.store.local import LocalStore
    from kolm_build.surfaces.building import Prepared
    from kolm_build.surfaces.results import Finished, Written
    from kolm_build.surfaces.shortcut import Told


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Make what the lock describes, or find it made. Every step runs closed in, on inputs\n"
        "that are pinned; what was made before is used again. The artifact NAME.kolm is\n"
        "written beside the recipe if the quality gate passes, and signed if there is a key.",
        ("kolm build", "everything"),
        ("kolm build train-1", "one node and what it needs"),
        ("kolm build --dry-run", "what would be done"),
        ("kolm build --check", "build again and compare with what is in the store"),
        ("kolm build --substituter URL", "copy from there what it has"),
        ("kolm build --target raspberry-pi-5", "only if the model will fit that device"),
        ("kolm build --record", "note the results in kolm.outputs, for `kolm rebuild`"),
    )
    parser.add_argument("targets", metavar="TARGET", nargs="*", help="a node or node.output")
    parser.add_argument("--check", action="store_true", help="build again what is built; compare")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--record", action="store_true", help="write kolm.outputs")
    parser.add_argument("-o", "--output", metavar="FILE", help="where the artifact goes")
    add_target(parser, "what does not fit is not built")
    add_building(parser)
    add_substituters(parser)
    add_key(parser)
    add_project(parser)
    add_store(parser)
    add_json(parser, "events, one JSON object a line")


def run(args: Namespace, terminal: Terminal) -> int:
    """Build."""
    from kolm_build.surfaces.shortcut import nothing_to_do

    told = nothing_to_do(args)
    if told is not None:
        _tell_again(told, args, terminal)
        return 0
    return _look(args, terminal)


def _tell_again(told: Told, args: Namespace, terminal: Terminal) -> None:
    """What the last build told; nothing has changed since."""
    if args.json:
        if told.artifact is not None:
            terminal.give(told.artifact)
        terminal.give({"event": "done", "targets": dict(told.targets)})
        return
    if told.artifact is not None:
        terminal.say(f"{_shown(str(told.artifact['path']))}  {told.artifact['id']}")
    else:
        for name, content in told.targets.items():
            terminal.say(f"{name}  {content}")
    terminal.tell("nothing to do", "dim")


def _shown(path: str) -> str:
    return path.removeprefix(os.path.join(os.getcwd(), ""))


def _look(args: Namespace, terminal: Terminal) -> int:
    from kolm_build.surfaces.building import prepare
    from kolm_build.surfaces.opening import open_store
    from kolm_build.surfaces.project import open_project
    from kolm_build.surfaces.signing import find_key

    project = open_project(args.project, lock=args.lock)
    with open_store(args) as store:
        if args.dry_run:
            return _plan(prepare(project, store), args, store, terminal)
        key = None if args.no_sign else find_key(args.key, args.passphrase_file)
        return _build(prepare(project, store), args, key, store, terminal)


def _plan(prepared: Prepared, args: Namespace, store: LocalStore, terminal: Terminal) -> int:
    from kolm_build.core.plan import Build, Substitute
    from kolm_build.surfaces.building import planned
    from kolm_build.surfaces.cli.target import forecast_for, say_forecast
    from kolm_build.surfaces.progress import NAME_COLUMNS

    wanted = prepared.wanted(args.targets)
    with _substitutes(args, store, _teller(args, terminal), terminal) as substitutes:
        plan = planned(prepared, wanted, store, check=args.check, substitutes=substitutes)
    if args.target is not None:
        say_forecast(args, forecast_for(args, prepared, plan.contents.get, store), terminal)
    if args.json:
        terminal.give({"event": "plan", "nodes": plan.to_value()})
        return 0
    width = max([NAME_COLUMNS, *(len(action.name) for action in plan.actions)])
    for action in plan.actions:
        verb = type(action).__name__.lower()
        terminal.say(f"{action.name:<{width}} {verb}: {action.reason}")
    builds = sum(isinstance(action, Build) for action in plan.actions)
    copies = sum(isinstance(action, Substitute) for action in plan.actions)
    copied = f"{copies} to copy, " if copies else ""
    terminal.tell(f"{builds} to build, {copied}{len(plan.actions) - builds - copies} to reuse")
    return 0


def _teller(args: Namespace, terminal: Terminal) -> OnEvent:
    """Tells of what happens before a plan is printed: troubles alone."""
    from kolm_build.surfaces.progress import json_lines, trouble_lines

    return json_lines(terminal) if args.json else trouble_lines(terminal)


def _substitutes(
    args: Namespace, store: LocalStore, on_event: OnEvent, terminal: Terminal
) -> AbstractContextManager[Substitutes | None]:
    """The substituters that the command line and the settings name; None where there are none."""
    from kolm_build.surfaces.places import own_substituters

    if not args.substituter and not own_substituters():
        from contextlib import nullcontext

        return nullcontext()
    from kolm_build.surfaces.addresses import addresses
    from kolm_build.surfaces.substituting import open_substitutes, warn_of_no_trust
    from kolm_build.surfaces.trusting import own_trust

    urls = addresses(args.substituter, offline=args.offline, terminal=terminal)
    trust = own_trust(args.trust)
    if urls:
        warn_of_no_trust(trust, terminal)
    return open_substitutes(urls, store, trust=trust, on_event=on_event)


def _build(
    prepared: Prepared,
    args: Namespace,
    key: SigningKey | None,
    store: LocalStore,
    terminal: Terminal,
) -> int:
    from functools import partial

    from kolm_build.surfaces.building import build
    from kolm_build.surfaces.cli.target import check_target
    from kolm_build.surfaces.memory import add_root, remember
    from kolm_build.surfaces.progress import shown_events
    from kolm_build.surfaces.results import Finished, check_outputs, record_outputs

    options = build_options(args)
    wanted = prepared.wanted(args.targets)
    add_root(prepared, store)
    with (
        shown_events(terminal, json=args.json) as on_event,
        _substitutes(args, store, on_event, terminal) as substitutes,
    ):
        if args.target is not None:
            make = partial(
                build,
                prepared,
                store=store,
                options=options,
                on_event=on_event,
                substitutes=substitutes,
            )
            check_target(args, prepared, make, store, terminal)
        realised = build(
            prepared,
            wanted,
            store,
            options=options,
            on_event=on_event,
            mode="check" if args.check else "reuse",
            substitutes=substitutes,
        )
    remember(prepared, realised.actions, store)
    done = Finished(prepared=prepared, wanted=wanted, realised=realised, store=store)
    if args.record:
        record_outputs(done)
    else:
        check_outputs(done)
    return _finish(done, args, key, terminal)


def _finish(done: Finished, args: Namespace, key: SigningKey | None, terminal: Terminal) -> int:
    """Write the artifact, if there is one, and tell what was made."""
    from kolm_build.surfaces.results import package_of, write_artifact
    from kolm_build.surfaces.shortcut import note

    _check_grade(done, args, terminal)
    written = None
    package = package_of(done)
    if package is not None and not args.check:
        project = done.prepared.project
        written = write_artifact(
            package,
            project.artifact_file(args.output),
            name=project.recipe.name,
            key=_allowed(key, done, args, terminal),
            store=done.store,
        )
        _tell_artifact(written, args, terminal)
    refused = key is not None and written is not None and written.signed_by is None
    asks = done.prepared.lock.minimum_grade is not None  # then claims are looked at every time
    if not (args.check or args.record or refused or asks):
        note(done, written, args)
    contents = {name: str(done.realised.contents[one]) for name, one in done.wanted.items()}
    if args.json:
        terminal.give({"event": "done", "targets": contents})
    elif package is None or args.check:
        for name, content in contents.items():
            terminal.say(f"{name}  {content}")
    return 0


def _check_grade(done: Finished, args: Namespace, terminal: Terminal) -> None:
    """Refuse to release what is not shown to be as reproducible as the lock asks."""
    if args.check or done.prepared.lock.minimum_grade is None:
        return
    from kolm_build.surfaces.addresses import addresses
    from kolm_build.surfaces.grading import check_grade

    urls = addresses(args.substituter, offline=args.offline, terminal=terminal)
    wanted = tuple(done.wanted.values())
    check_grade(done.prepared, wanted, args, store=done.store, terminal=terminal, urls=tuple(urls))


def _allowed(
    key: SigningKey | None, done: Finished, args: Namespace, terminal: Terminal
) -> SigningKey | None:
    """The key, unless something was built without a sandbox: that is never signed."""
    from kolm_build.errors import NoSandboxError
    from kolm_build.surfaces.results import tainted

    if key is None:
        return None
    nodes = ", ".join(tainted(done))
    if not nodes:
        return key
    if args.key is not None:
        raise NoSandboxError(
            "what was built without a sandbox is not signed",
            where=nodes,
            advice="Build these nodes with --sandbox=require and --check, or give no --key.",
        )
    terminal.tell(f"not signed: built without a sandbox: {nodes}", "yellow")
    return None


def _tell_artifact(written: Written, args: Namespace, terminal: Terminal) -> None:
    if args.json:
        terminal.give(written.to_value())
        return
    terminal.say(f"{_shown(str(written.path))}  {written.artifact_id}")
    terminal.tell(_figures(written.kscore))
    how = written.quantisation
    if how is not None:
        terminal.tell(f"{_figures(how.full_kscore)}  in full precision", "dim")
        terminal.tell(f"{how.scheme} by {how.method}, {how.bits_per_weight} bits a weight")
    terminal.tell(
        f"signed by {written.signed_by}"
        if written.signed_by
        else "unsigned: `kolm key new` makes a key, and the next build signs"
    )


def _figures(kscore: Mapping[str, str]) -> str:
    return "  ".join(f"{name} {kscore[name]}" for name in _TERMS if name in kscore)


_TERMS = ("k", "accuracy", "size", "latency", "cost", "coverage")
