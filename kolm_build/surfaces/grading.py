"""The grade that a lock asks for, and the grade that claims show (spec/trust.md, GRADE-4 on)."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.core.quorum import RELEASE, is_grade_below
from kolm_build.errors import InvalidRecordError, UntrustedError
from kolm_build.surfaces.trusting import read_trust

if TYPE_CHECKING:
    from kolm_build.attest.container import Container
    from kolm_build.attest.trust import TrustPolicy
    from kolm_build.core.derivation import OutputInput
    from kolm_build.store.local import LocalStore
    from kolm_build.surfaces.building import Prepared
    from kolm_build.surfaces.hearing import Claimed
    from kolm_build.surfaces.terminal import Terminal


def check_grade(
    prepared: Prepared,
    wanted: Iterable[OutputInput],
    args: Namespace,
    *,
    store: LocalStore,
    terminal: Terminal,
    urls: tuple[str, ...] = (),
) -> None:
    """Refuse what claims show less of than its lock asks for.

    Args:
        prepared: The project.
        wanted: What is to be released.
        args: Says whom the reader trusts.
        store: Whose claims are judged.
        terminal: Where to tell what is wrong with a substituter.
        urls: Substituters whose claims are judged too.

    Raises:
        UntrustedError: An output was not shown to be as reproducible as the lock asks.
        KeyFileError: It asks, and the reader trusts nobody.
    """
    least = prepared.lock.minimum_grade
    if least is None:
        return
    from kolm_build.surfaces.listening import Troubles, hear

    trust = read_trust(getattr(args, "trust", None))
    heard = hear(
        prepared.instance, wanted, urls, store=store, trust=trust,
        on_trouble=Troubles(terminal, json=args.json),
    )  # fmt: skip
    refuse_below(least, heard, trust)


def refuse_below(least: str, heard: Iterable[Claimed], trust: TrustPolicy) -> None:
    """Refuse claims of which one output's show less than `least`; fixed ones need none.

    Raises:
        UntrustedError: They do.
    """
    grades = {one.name: one.verdict(trust).grade for one in heard if one.fixed is None}
    below = sorted(name for name, grade in grades.items() if is_grade_below(grade, least))
    if below:
        found = sorted({grades[name] or "no valid claim" for name in below})
        raise UntrustedError(
            "it is not shown to be as reproducible as its lock asks",
            where=below[0] + (f" and {len(below) - 1} more outputs" if len(below) > 1 else ""),
            expected=f"the grade {least}",
            actual=", ".join(found),
            advice="`kolm trust` explains each output. `kolm rebuild --attest` elsewhere signs what"
            " it rebuilds; `kolm copy` brings claims here.",
        )


def check_artifact_grade(
    container: Container, file: Path, claims: Path | None, trust: TrustPolicy
) -> str | None:
    """Refuse an artifact of which a store's claims show less than its lock asks for.

    Args:
        container: The artifact, everything else of which holds.
        file: Where it is, for messages: it is not opened again, since it may be another by now.
        claims: The store; None where none was named.
        trust: Whose claims count.

    Returns:
        The grade that was asked for; None where none is.

    Raises:
        UntrustedError: It is not shown.
    """
    least = _least(container)
    if least is None:
        return None
    if claims is None:
        raise UntrustedError(
            "its lock asks for a grade, and an artifact holds no claims that show one",
            file=str(file),
            expected=f"the grade {least}",
            actual="no claims",
            advice="Name a store that has the builders' claims by --claims.",
        )
    refuse_below(least, _heard_of(container, claims, trust), trust)
    return least


def _least(container: Container) -> str | None:
    """The grade that an artifact's lock asks for; one that asks for none is not read whole."""
    from kolm_build.core.story import LOCK
    from kolm_build.core.toml import read_toml

    member = f"build/{LOCK}"
    entry = container.entries.get(member)
    if entry is None:
        return None
    text = container.checked(member, entry.size).decode()
    try:
        table = read_toml(text)
    except InvalidRecordError as error:
        raise error.in_file(member) from None
    if RELEASE not in table:
        return None
    from kolm_build.core.lock import parse_lock  # and with it the catalogue: 30 ms

    return parse_lock(text, file=member).minimum_grade


def _heard_of(container: Container, claims: Path, trust: TrustPolicy) -> list[Claimed]:
    from kolm_build.core.instantiation.instance import PACKAGE
    from kolm_build.store.local import LocalStore
    from kolm_build.surfaces.hearing import STORE, Hearing, claims_of_store
    from kolm_build.surfaces.rebuilding import fresh_store, prepare_artifact

    with fresh_store(None) as scratch, LocalStore.open(claims, read_only=True) as store:
        prepared = prepare_artifact(container, scratch)
        sources = [(STORE, claims_of_store(store))]
        hearing = Hearing(instance=prepared.instance, sources=sources, trust=trust)
        return hearing.hear(prepared.wanted([PACKAGE]).values())
