"""Saying more of claims that are there: commitments, and when a log saw what (spec/trust.md)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kolm_build.attest.claims import open_statement
from kolm_build.attest.envelope import MAX_BYTES, Envelope
from kolm_build.attest.testimony import COMMITMENT, NONCE_BYTES, commit, is_witnessed, witness
from kolm_build.errors import MissingObjectError, SignatureError, UsageError
from kolm_build.store.remote.place import Limits, Place
from kolm_build.store.remote.publish import Publisher
from kolm_build.surfaces.files import write_new
from kolm_build.surfaces.substituting import fact_of, found_claim

if TYPE_CHECKING:
    from kolm_build.attest.keys import SigningKey
    from kolm_build.store.claims import StoredRealisation
    from kolm_build.store.local import LocalStore
    from kolm_build.surfaces.hearing import Claimed

SUFFIX = ".commitment.json"
WITNESS_SUFFIX = ".witness.json"


def now() -> str:
    """What the clock of this machine says, for a log that says when it saw something."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def commit_to(
    heard: Sequence[Claimed], folder: Path, *, key: SigningKey, store: LocalStore
) -> list[Path]:
    """Write a commitment to each claim by `key` among `heard`; the nonces stay in the store.

    Returns:
        The files, one an output, to be published before any claim is.

    Raises:
        MissingObjectError: An output has no claim by this key.
        UsageError: An output has several contents by this key, or is committed to already.
    """
    own = [(claimed, _own(claimed, key)) for claimed in heard]
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for claimed, claim in own:
        nonce = os.urandom(NONCE_BYTES)
        made = commit(fact_of(claim), nonce=nonce, key=key)
        path = folder / f"{claimed.name}.{key.public.keyid[:16]}{SUFFIX}"
        write_new(path, made)
        store.add_claim(claim.with_evidence((made, nonce)))
        paths.append(path)
    return paths


def _own(claimed: Claimed, key: SigningKey) -> StoredRealisation:
    """The claim by `key`."""
    own = [claim for _, claim in claimed.claims if _is_by(claim, key)]
    if not own:
        raise MissingObjectError(
            "no claim of it is signed with this key",
            where=claimed.name,
            expected=key.public.keyid,
            advice="`kolm rebuild --attest` signs what it rebuilds.",
        )
    if any(nonce is not None for claim in own for _, nonce in claim.evidence):
        raise UsageError("it is committed to already", file=claimed.name)
    if len({claim.realisation for claim in own}) > 1:
        raise UsageError("this key claims several contents of it", file=claimed.name)
    return own[0]


def _is_by(claim: StoredRealisation, key: SigningKey) -> bool:
    if claim.envelope is None:
        return False
    return Envelope.decode(claim.envelope).signatures[0].keyid == key.public.keyid


def witness_file(file: Path, *, time: str, key: SigningKey) -> Path:
    """Countersign the commitment in `file`; the new file beside it.

    Raises:
        SignatureError: It is no commitment.
    """
    data = file.read_bytes()[: MAX_BYTES + 1]
    if open_statement(data)[1].predicate_type != COMMITMENT:
        raise SignatureError("not a commitment", file=str(file))
    dest = file.with_name(
        file.name.removesuffix(SUFFIX) + f".{key.public.keyid[:16]}{WITNESS_SUFFIX}"
    )
    write_new(dest, witness(data, time=time, key=key))
    return dest


def witness_claims(
    heard: Sequence[Claimed], *, time: str, key: SigningKey, store: LocalStore
) -> int:
    """Countersign every signed claim among `heard`, in the store; how many there were."""
    seen = list(_witnessed(heard, time, key))
    for claim in seen:
        store.add_claim(claim)
    return len(seen)


def witness_at(
    heard: Sequence[Claimed], place: Place, *, time: str, key: SigningKey, store: LocalStore
) -> int:
    """Countersign every signed claim that `place` has, there; how many there were.

    They are not kept in the store: a log sees what it does not believe, too.
    """
    publisher = Publisher(
        place, store.giver(), limits=Limits(), jobs=1, on_bytes=lambda _done, _total: None
    )
    publisher.begin()
    count = 0
    for claimed in heard:
        there = tuple((source, claim) for source, claim in claimed.claims if source == place.url)
        seen = list(_witnessed([replace(claimed, claims=there)], time, key))
        if claimed.resolved is not None and seen:
            publisher.claims(claimed.resolved, seen)
        count += len(seen)
    return count


def _witnessed(heard: Sequence[Claimed], time: str, key: SigningKey) -> Iterator[StoredRealisation]:
    for claim, envelope in _signed(heard):
        # A log that comes by every day says nothing new the second time.
        if is_witnessed(found_claim(claim), time=time, keyid=key.public.keyid):
            yield claim
        else:
            yield claim.with_evidence((witness(envelope, time=time, key=key), None))


def add_evidence(heard: Sequence[Claimed], files: Sequence[Path], *, store: LocalStore) -> int:
    """Put the countersignatures in `files` beside the claims that they are about.

    Returns:
        How many claims know more now.

    Raises:
        SignatureError: A file holds no signed statement.
    """
    pieces = []
    for file in files:
        data = file.read_bytes()[: MAX_BYTES + 1]
        try:
            open_statement(data)
        except SignatureError as error:
            raise error.in_file(str(file)) from None
        pieces.append((data, None))
    claims = [claim for claim, _ in _signed(heard)]
    for claim in claims:
        store.add_claim(claim.with_evidence(*pieces))
    return len(claims)


def _signed(heard: Sequence[Claimed]) -> Iterator[tuple[StoredRealisation, bytes]]:
    from kolm_build.surfaces.hearing import merged

    for claimed in heard:
        for claim in merged(claim for _, claim in claimed.claims):
            if claim.envelope is not None:
                yield claim, claim.envelope
