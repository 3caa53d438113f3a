"""`kolm verify`: the standard library and `cryptography` alone."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.surfaces.cli.options import add_json
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

if TYPE_CHECKING:
    from kolm_build.attest.container import Container
    from kolm_build.attest.trust import TrustPolicy
    from kolm_build.attest.verify import Report


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Check an artifact without a network: every byte against the manifest, every signature\n"
        "against your trust file, every figure against the rows it was computed from.",
        ("kolm verify triage.kolm", "with ~/.config/kolm/trust.toml"),
        ("kolm verify triage.kolm --trust team.toml", ""),
        ("kolm verify triage.kolm --no-trust", "the bytes and figures alone"),
        ("kolm verify triage.kolm --claims store", "where its lock asks for a grade"),
    )
    parser.add_argument("file", metavar="FILE.kolm", type=Path, help="the artifact")
    parser.add_argument(
        "--trust", metavar="FILE", type=Path, help="whom you trust (default: your trust file)"
    )
    parser.add_argument(
        "--no-trust", action="store_true", help="do not ask who signed; says nothing about origin"
    )
    parser.add_argument(
        "--claims",
        metavar="DIR",
        type=Path,
        help="the store whose claims show the grade that its lock asks for",
    )
    add_json(parser, "one JSON object with the verdict")


def run(args: Namespace, terminal: Terminal) -> int:
    """Check it, or raise."""
    from kolm_build.attest.container import Container
    from kolm_build.attest.verify import Verification

    with (
        _impatient_threads(),
        Container.open(args.file) as container,
        Verification(container) as verification,
    ):
        from kolm_build.surfaces.trusting import read_trust

        trust = None if args.no_trust else read_trust(args.trust)
        report = verification.report(trust)
        grade = None if trust is None else _grade(container, args, trust)
    if args.json:
        terminal.give(report.to_value() | ({} if grade is None else {"grade_shown": grade}))
    else:
        _tell(report, terminal)
        if grade is not None:
            terminal.say(f"shown to be of the grade {grade}, or better", "green")
    return 0


@contextmanager
def _impatient_threads() -> Iterator[None]:
    """Let threads change fifty times as often: a setting of the process, so the program's to make.

    A thread that hashes wants the interpreter's lock for microseconds, and waited 5 ms for it
    after every piece while this thread imported.
    """
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(interval_s / 50)
    try:
        yield
    finally:
        sys.setswitchinterval(interval_s)


def _grade(container: Container, args: Namespace, trust: TrustPolicy) -> str | None:
    """The grade that the artifact's lock asks for, which claims show; None where none is."""
    from kolm_build.surfaces.grading import check_artifact_grade

    return check_artifact_grade(container, args.file, args.claims, trust)


def _tell(report: Report, terminal: Terminal) -> None:
    terminal.say(f"{report.manifest.name}: every byte is as the manifest says", "green")
    terminal.say(f"  artifact  {report.artifact_id}")
    terminal.say(f"            {report.manifest_b3}")
    terminal.say(f"  weights   {report.manifest.weights_id}")
    how = report.manifest.quantisation
    if how is not None:
        terminal.say(f"  {how.scheme} by {how.method}, {how.bits_per_weight} bits a weight")
    adapter = report.manifest.adapter
    if adapter is not None:
        terminal.say(f"  adapter   {adapter.kind} beside the weights, {adapter.parameters} numbers")
    for name, value in report.manifest.kscore.items():
        before = "" if how is None else f"  {how.full_kscore.get(name, '?')} in full precision"
        terminal.say(f"  {name:<9} {value}{before}")
    for text in report.evidenced:
        terminal.say(f"  checked   {text}")
    for text in report.not_evidenced:
        terminal.say(f"  not evidenced: {text}", "yellow")
    for signed in report.signatures:
        who = signed.signer or f"a key nobody vouches for, {signed.keyid[:16]}"
        terminal.say(f"  {signed.statement} by {who}", "" if signed.counts else "yellow")
    if report.trusted:
        terminal.say("trusted", "green")
    else:
        terminal.say("not asked whom to trust: this says nothing about who made it", "yellow")
