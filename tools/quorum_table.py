"""What a policy makes of claims: met, not met, copied, contested, revoked, and why.

    python tools/quorum_table.py [--write docs/quorum-verdicts.md]

Three builders with a store, a key and a cache each make, copy or contradict one small project, a
log countersigns, and a reader who has built nothing asks `kolm trust`. Every answer is the
program's own. One that is not as it should be ends this program with status 1.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.e2e.conftest import FILES, Project  # noqa: E402  # the checkout's own code comes first
from tests.e2e.parties import FEBRUARY, JANUARY, MARCH, Parties  # noqa: E402

HEAD = """\
# What a policy makes of claims

Made by `python tools/quorum_table.py --write docs/quorum-verdicts.md`. Three builders (ann, ben,
cat), one log, one reader who has built nothing; the policy asks for two builders. All builds of one
run of this program share a machine, so no grade is above R1. How a policy is written:
[trust.md](trust.md).
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question.

    Attributes:
        title: What it shows.
        given: What was done before, in words.
        status: The exit status that it has to have.
        before: Does it.
        sources: Whose caches are heard.
        claims: The lines of the policy's table `claims`.
        windows: What is said of keys.
        organisations: Who belongs to whom.
    """

    title: str
    given: str
    status: int
    before: Callable[[Parties], None]
    sources: Sequence[str] = ("ann", "ben", "cat")
    claims: str = ""
    windows: Sequence[tuple[str, str]] = field(default=())
    organisations: Sequence[tuple[str, str]] = field(default=())


def two(parties: Parties) -> None:
    """Two build."""
    parties.builds("ann")
    parties.builds("ben")


def one(parties: Parties) -> None:
    """One builds."""
    parties.builds("ann")


def one_and_a_copy(parties: Parties) -> None:
    """One builds, another copies that."""
    parties.builds("ann")
    parties.copies("cat", "ann")


def two_and_a_dissenter(parties: Parties) -> None:
    """Two build, the third says otherwise."""
    parties.builds("ann")
    parties.builds("cat")
    parties.lies("ben", "ann", about=parties.content("ann"))


def seen_late(parties: Parties) -> None:
    """Two build, a log sees the second one's claims in March."""
    two(parties)
    parties.sees("ben", MARCH)


def seen_early(parties: Parties) -> None:
    """Two build, a log sees the second one's claims in January."""
    two(parties)
    parties.sees("ben", JANUARY)


def committed_in_time(parties: Parties) -> None:
    """Two rebuild and commit before either shows what came out."""
    for name in ("ben", "cat"):
        parties.commits(name, JANUARY)
    for name in ("ben", "cat"):
        parties.publishes(name)
        parties.sees(name, FEBRUARY)


def committed_too_late(parties: Parties) -> None:
    """Two rebuild and commit, one of them when the other has shown it."""
    for name, committed, shown in (("ben", JANUARY, FEBRUARY), ("cat", MARCH, MARCH)):
        parties.commits(name, committed)
        parties.publishes(name)
        parties.sees(name, shown)


REVOKED = (("ben", f"revoked = {FEBRUARY}"),)
EXPIRED = (("ben", f"until = {FEBRUARY}"),)
CASES = (
    Case(title="2 of 3, met", given="ann and ben built it", status=0, before=two),
    Case(title="2 of 3, not met", given="ann alone built it", status=64, before=one),
    Case(
        title="Copied, not built",
        given="ann built it, cat copied it from ann and published it",
        status=64,
        before=one_and_a_copy,
    ),
    Case(
        title="Contested",
        given="ann and cat built it, ben signed another content",
        status=80,
        before=two_and_a_dissenter,
    ),
    Case(
        title="Contested, and the policy uses the majority",
        given='the same, with `contested = "majority"`: usable, and still an alarm',
        status=16,
        before=two_and_a_dissenter,
        claims='contested = "majority"',
    ),
    Case(
        title="Revoked, and no time is known",
        given="ann and ben built it; ben's key was revoked as of February",
        status=64,
        before=two,
        windows=REVOKED,
    ),
    Case(
        title="Revoked before the claim was seen",
        given="the same, and the log saw ben's claims in March",
        status=64,
        before=seen_late,
        windows=REVOKED,
    ),
    Case(
        title="Revoked after the claim was seen",
        given="the same, and the log saw ben's claims in January",
        status=0,
        before=seen_early,
        windows=REVOKED,
    ),
    Case(
        title="Expired when the claim was seen",
        given="ben's key was good until February, and the log saw his claims in March",
        status=64,
        before=seen_late,
        windows=EXPIRED,
    ),
    Case(
        title="Two of one organisation",
        given='ann and ben built it, both of one organisation; `distinct = ["organisation"]`',
        status=64,
        before=two,
        claims='distinct = ["organisation"]',
        organisations=(("ben", "of-ann"),),
    ),
    Case(
        title="Two on one machine",
        given='ann and ben built it on one machine; `distinct = ["machine"]`',
        status=64,
        before=two,
        claims='distinct = ["machine"]',
    ),
    Case(
        title="Committed to before it was shown",
        given="ben and cat rebuilt it and committed in January, and showed it in February; "
        "`committed = true`",
        status=0,
        before=committed_in_time,
        claims="committed = true",
    ),
    Case(
        title="Committed to when it was shown",
        given="ben showed it in February, cat committed in March; `committed = true`",
        status=64,
        before=committed_too_late,
        claims="committed = true",
    ),
    Case(
        title="A grade that was not reached",
        given='ann and ben built it on one machine; `grade = "R2"`',
        status=64,
        before=two,
        claims='grade = "R2"',
    ),
)


@contextmanager
def parties_below(folder: Path) -> Iterator[Parties]:
    """Them, with a locked project, in an empty home."""
    home = {"HOME": folder, "XDG_CONFIG_HOME": folder / "config", "KOLM_STORE": folder / "store"}
    os.environ.update({name: str(path) for name, path in home.items()})
    for name in ("KOLM_TRUST", "KOLM_KEY", "KOLM_PASSPHRASE", "KOLM_SUBSTITUTERS"):
        os.environ.pop(name, None)
    project = Project(root=folder / "words", store=folder / "store")
    project.root.mkdir()
    for name, text in FILES.items():
        project.write(name, text)
    before = Path.cwd()
    os.chdir(project.root)
    try:
        project.ok("lock")
        yield Parties.below(project, folder / "parties")
    finally:
        os.chdir(before)


def answer_of(case: Case) -> tuple[int, str]:
    """The exit status and the text of `kolm trust`."""
    with TemporaryDirectory() as folder, parties_below(Path(folder)) as parties:
        return asked(case, parties)


def asked(case: Case, parties: Parties) -> tuple[int, str]:
    """The same, of parties who have done nothing yet."""
    case.before(parties)
    trust = parties.trust(
        claims=case.claims, windows=case.windows, organisations=case.organisations
    )
    there = [name for name in case.sources if (parties.folder / f"{name}-cache").exists()]
    answer = parties.asks(trust, *there)
    return answer.status, answer.out or answer.err


def main() -> int:
    """Print or write the page; 1 if a verdict is not as it should be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="where the page goes")
    args = parser.parse_args()
    parts, wrong = [HEAD], []
    for case in CASES:
        status, text = answer_of(case)
        print(f"{case.title}: status {status}", file=sys.stderr, flush=True)
        if status != case.status:
            wrong.append(f"{case.title}: status {status}, not {case.status}\n{text}")
        parts.append(
            f"## {case.title}\n\nGiven: {case.given}. Exit status {status}.\n\n```\n{text}```\n"
        )
    page = "\n".join(parts)
    if args.write is not None:
        args.write.write_text(page)
    else:
        print(page)
    for text in wrong:
        print(text, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
