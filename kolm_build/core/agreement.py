"""Agreement: which contents are to be believed, given who claims what (spec/substituter.md)."""

from __future__ import annotations

from collections.abc import Iterable

from kolm_build.core.digest import Digest


def agreed(votes: Iterable[tuple[Digest, str]], threshold: int) -> tuple[Digest, ...]:
    """The contents to believe in.

    Args:
        votes: Pairs of a content and a trusted principal that claims it.
        threshold: How many principals must claim the same.

    Returns:
        One content that enough principals claim; every content where they claim several, which is
        contested whatever the threshold; nothing else.
    """
    voters: dict[Digest, set[str]] = {}
    for content, principal in votes:
        voters.setdefault(content, set()).add(principal)
    contents = tuple(sorted(voters))
    if len(contents) > 1:
        return contents
    return tuple(content for content in contents if len(voters[content]) >= threshold)
