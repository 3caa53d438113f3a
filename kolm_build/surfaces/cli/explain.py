"""`kolm explain`."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from kolm_build.surfaces.cli.options import add_json, add_project, add_store, add_target
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.cli.target import forecast_for, forecast_value, say_forecast
from kolm_build.surfaces.terminal import Terminal

if TYPE_CHECKING:
    from kolm_build.core.forecast import Forecast
    from kolm_build.store.local import LocalStore
    from kolm_build.surfaces.lookup import Look


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Tell why the next build would build what it would build, or why the last one did:\n"
        "root causes only, and what merely follows from them in one line each.",
        ("kolm explain", "everything that changed since the last build"),
        ("kolm explain train-1", "one node"),
        ("kolm explain --target raspberry-pi-5", "and whether the model will fit that device"),
    )
    parser.add_argument("node", metavar="NODE", nargs="?", help="default: every node")
    add_target(parser, "here nothing is refused")
    add_project(parser)
    add_store(parser)
    add_json(parser, "one JSON object")


def run(args: Namespace, terminal: Terminal) -> int:
    """Explain."""
    from kolm_build.surfaces.explaining import account_of
    from kolm_build.surfaces.lookup import Look
    from kolm_build.surfaces.opening import open_store
    from kolm_build.surfaces.project import open_project

    look = Look.at(open_project(args.project, lock=args.lock))
    node = None if args.node is None else look.node(args.node).name
    with open_store(args) as store:
        account = account_of(look, store, node=node)
        forecast = _forecast(args, look, store)
    asked = args.target is not None
    if args.json:
        told = {"forecast": forecast_value(forecast)} if asked else {}
        terminal.give(account.to_value() | told)
        return 0
    for line in account.lines():
        terminal.say(line)
    if asked:
        say_forecast(args, forecast, terminal)
    return 0


def _forecast(args: Namespace, look: Look, store: LocalStore) -> Forecast | None:
    if args.target is None:
        return None
    return forecast_for(args, look, look.plan(store).contents.get, store)
