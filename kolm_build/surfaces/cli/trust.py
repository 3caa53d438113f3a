"""`kolm trust`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.errors import Exit
from kolm_build.surfaces.cli.options import add_json, add_project, add_store, add_trust
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

if TYPE_CHECKING:
    from argparse import Namespace

    from kolm_build.attest.trust import TrustPolicy
    from kolm_build.core.quorum import Judged, Verdict
    from kolm_build.surfaces.hearing import Claimed
    from kolm_build.surfaces.judging import ArtifactVerdict


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Tell whether an output or artifact may be used by your trust file, and why: every claim,\n"
        "counted or why not, and what is missing. Exits 0 where the policy is met; with bit 16\n"
        "where trusted builders disagree, and with bit 64 where nothing may be used.",
        ("kolm trust", "the targets, by the claims in the store"),
        ("kolm trust train-1 --from https://cache.example/kolm", "and of a cache"),
        ("kolm trust triage.kolm --trust team.toml", "an artifact, by its attestations"),
    )
    parser.add_argument(
        "targets",
        metavar="TARGET|FILE.kolm",
        nargs="*",
        help="a node, node.output or artifact (default: the recipe's targets)",
    )
    parser.add_argument(
        "--from",
        metavar="URL",
        action="append",
        dest="sources",
        default=[],
        help="hear the claims that are there, too (repeatable)",
    )
    add_trust(parser)
    add_project(parser)
    add_store(parser)
    add_json(parser, "one JSON object for each output or artifact")


def run(args: Namespace, terminal: Terminal) -> int:
    """Explain; the exit status is the verdict's."""
    from kolm_build.surfaces.trusting import read_trust

    trust = read_trust(args.trust)
    files = [text for text in args.targets if text.endswith(".kolm")]
    names = [text for text in args.targets if not text.endswith(".kolm")]
    status = Exit.OK
    for file in files:
        status |= _artifact(Path(file), trust, args, terminal)
    if names or not files:
        for claimed in _heard(names, trust, args, terminal):
            status |= _output(claimed, trust, args, terminal)
    return int(status)


def _heard(
    names: list[str], trust: TrustPolicy, args: Namespace, terminal: Terminal
) -> list[Claimed]:
    from kolm_build.surfaces.copying import wanted_outputs
    from kolm_build.surfaces.listening import Troubles, hear
    from kolm_build.surfaces.lookup import Look
    from kolm_build.surfaces.opening import open_store
    from kolm_build.surfaces.project import open_project

    look = Look.at(open_project(args.project, lock=args.lock))
    wanted = wanted_outputs(look.instance, names, closure_too=False).values()
    with open_store(args) as store:
        heard = hear(
            look.instance, wanted, args.sources, store=store, trust=trust,
            on_trouble=Troubles(terminal, json=args.json),
        )  # fmt: skip
    # What a target is made from is told of where it is contested: an alarm is never left out.
    alarms = [one for one in heard if one.output not in wanted and _is_contested(one, trust)]
    return [*alarms, *(one for one in heard if one.output in wanted)]


def _is_contested(claimed: Claimed, trust: TrustPolicy) -> bool:
    if claimed.fixed is not None:
        return False
    verdict = claimed.verdict(trust)
    return verdict.is_contested or bool(claimed.rivals_here(verdict))


def _output(claimed: Claimed, trust: TrustPolicy, args: Namespace, terminal: Terminal) -> Exit:
    if claimed.fixed is not None:
        return _fixed(claimed, args, terminal)
    verdict = claimed.verdict(trust)
    rivals = claimed.rivals_here(verdict)
    status = Exit.NOT_REPRODUCIBLE if verdict.is_contested or rivals else Exit.OK
    status |= Exit.OK if verdict.usable else Exit.TRUST
    if args.json:
        resolved = None if claimed.resolved is None else str(claimed.resolved)
        unknown = list(claimed.unknown)
        known = {"output": claimed.name, "resolved": resolved, "unknown_inputs": unknown}
        terminal.give({**known, **verdict.to_value(), "rivals_here": list(map(str, rivals))})
        return status
    _tell(claimed, verdict, terminal)
    for rival in rivals:
        terminal.say(
            f"  alarm    the store has a claim of {rival}, and not everybody says so", "red"
        )
    return status


def _fixed(claimed: Claimed, args: Namespace, terminal: Terminal) -> Exit:
    """The lock names the content itself, so nobody has to be believed."""
    if args.json:
        terminal.give(
            {"output": claimed.name, "verdict": "fixed by the lock", "usable": str(claimed.fixed)}
        )
    else:
        terminal.say(f"{claimed.name}: fixed by the lock, no claim is needed", "green")
        terminal.say(f"  content  {claimed.fixed}")
    return Exit.OK


def _tell(claimed: Claimed, verdict: Verdict, terminal: Terminal) -> None:
    for text, colour in lines_of(claimed.name, verdict):
        terminal.say(text, colour)
    if claimed.unknown:
        terminal.say(f"  it is not known what is meant: {', '.join(claimed.unknown)}", "yellow")


def lines_of(name: str, verdict: Verdict) -> list[tuple[str, str]]:
    """The explanation of a verdict, as lines and their colours."""
    colour = {"met": "green", "not met": "yellow", "contested": "red"}[verdict.word]
    lines = [(f"{name}: {verdict.word}", colour)]
    for content, count in verdict.counts.items():
        used = "  may be used" if content == verdict.usable else ""
        lines.append((f"  content  {content}  {count} of {verdict.required}{used}", ""))
    if verdict.grade:
        lines.append((f"  grade    {verdict.grade}", ""))
    several = verdict.is_contested
    for judged in verdict.claims:
        mark, colour = ("counts", "green") if judged.counts else ("not", "yellow")
        lines.append((f"  {mark:<8} {_claim(judged, several=several)}", colour))
    if verdict.is_contested:
        lines.append(("  alarm    trusted builders claim several contents", "red"))
    lines += [(f"  missing  {text}", "yellow") for text in verdict.missing]
    return lines


def _claim(judged: Judged, *, several: bool) -> str:
    vote = judged.vote
    key = f"key {vote.keyid[:16]}" if vote.keyid else "nobody"
    text = f"{vote.kind or 'claimed'} by {vote.signer or key}"
    if vote.seen:
        text += f", seen {vote.seen}"
    if several:
        text += f", as {vote.content}"
    return f"{text}: {judged.reason}" if judged.reason else text


def _artifact(file: Path, trust: TrustPolicy, args: Namespace, terminal: Terminal) -> Exit:
    from kolm_build.attest.container import Container
    from kolm_build.surfaces.judging import judge_artifact

    with Container.open(file) as container:
        verdict = judge_artifact(container, trust)
    if args.json:
        terminal.give({"artifact": str(file), **verdict.to_value()})
    else:
        _tell_artifact(file, verdict, terminal)
    return Exit.OK if verdict.is_met else Exit.TRUST


def _tell_artifact(file: Path, verdict: ArtifactVerdict, terminal: Terminal) -> None:
    met = verdict.is_met
    terminal.say(f"{file}: {'met' if met else 'not met'}", "green" if met else "yellow")
    terminal.say(f"  artifact {verdict.artifact_id}")
    for signed, reason in zip(verdict.signatures, verdict.reasons, strict=True):
        text = f"{signed.statement} by {signed.signer or f'key {signed.keyid[:16]}'}"
        if reason:
            terminal.say(f"  not      {text}: {reason}", "yellow")
        else:
            terminal.say(f"  counts   {text}", "green")
    for missing in verdict.missing:
        terminal.say(f"  missing  {missing}", "yellow")
