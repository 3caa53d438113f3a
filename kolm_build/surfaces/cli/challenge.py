"""`kolm challenge`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kolm_build.errors import Exit
from kolm_build.surfaces.cli.options import add_json, add_project, add_store, add_trust
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

if TYPE_CHECKING:
    from argparse import Namespace

    from kolm_build.surfaces.challenging import Answer, Challenge
    from kolm_build.surfaces.listening import Troubles


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Ask several caches, and your store, what they claim of every output, and compare.\n"
        "Nothing is built, fetched or kept. Exits 16 where two contents are claimed of one\n"
        "output, whoever claims them, 4 where no output has claims at two places, and with the\n"
        "bits of what is wrong with a cache that cannot be asked, such as 1 where none is there.",
        (
            "kolm challenge https://a.example/kolm s3://b/cache",
            "all that the targets are made from",
        ),
        ("kolm challenge file:///mnt/stick", "a cache against your own store"),
    )
    parser.add_argument("urls", metavar="URL", nargs="+", help="a substituter's address")
    parser.add_argument(
        "--target",
        metavar="TARGET",
        action="append",
        default=[],
        help="a node or node.output, with what it is made from (default: the recipe's targets)",
    )
    add_trust(parser)
    add_project(parser)
    add_store(parser)
    add_json(parser, "one JSON object for each output")


def run(args: Namespace, terminal: Terminal) -> int:
    """Compare."""
    from kolm_build.surfaces.challenging import challenge_of
    from kolm_build.surfaces.copying import wanted_outputs
    from kolm_build.surfaces.listening import Troubles, hear
    from kolm_build.surfaces.lookup import Look
    from kolm_build.surfaces.opening import open_store
    from kolm_build.surfaces.project import open_project
    from kolm_build.surfaces.trusting import own_trust

    trust = own_trust(args.trust)
    look = Look.at(open_project(args.project, lock=args.lock))
    wanted = wanted_outputs(look.instance, args.target, closure_too=False).values()
    troubles = Troubles(terminal, json=args.json)
    with open_store(args) as store:
        heard = hear(
            look.instance, wanted, args.urls, store=store, trust=trust, on_trouble=troubles
        )
    answers = [challenge_of(one, trust) for one in heard if one.fixed is None]
    for answer in answers:
        _tell(answer, args, terminal)
    return int(_status(answers, args, terminal) | _silent(troubles, args, terminal))


def _status(answers: list[Challenge], args: Namespace, terminal: Terminal) -> Exit:
    words = [answer.word for answer in answers]
    count = {word: words.count(word) for word in ("same", "differs", "not compared")}
    if not args.json:
        terminal.tell(", ".join(f"{number} {word}" for word, number in count.items()))
    if count["differs"]:
        return Exit.NOT_REPRODUCIBLE
    if not count["same"]:
        if not args.json:
            terminal.tell("nothing was compared: no output has claims at two places", "yellow")
        return Exit.STORE
    return Exit.OK


def _silent(troubles: Troubles, args: Namespace, terminal: Terminal) -> Exit:
    """The bits of the caches that could not be asked: no disagreement there would have been met."""
    if troubles and not args.json:
        count = f"{len(troubles)} of {len(args.urls)} caches"
        terminal.tell(f"not compared with all that was named: {count} did not answer", "yellow")
    return troubles.exit


def _tell(answer: Challenge, args: Namespace, terminal: Terminal) -> None:
    if args.json:
        terminal.give(answer.to_value())
        return
    colours = {"same": "green", "differs": "red", "not compared": "yellow"}
    terminal.say(f"{answer.name}: {answer.word}", colours[answer.word])
    if answer.unknown:
        terminal.say(f"  it is not known what is meant: {', '.join(answer.unknown)}", "yellow")
    for one in answer.answers:
        terminal.say(f"  {_line(one)}")


def _line(one: Answer) -> str:
    return f"{one.source}  {one.content}  {one.kind} by {one.who}"
