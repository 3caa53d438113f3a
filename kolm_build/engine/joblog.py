"""Where the log of a build is found again: for what was built, and for what failed.

A realisation's circumstances name the log. A failed build has no realisation; its log is
noted under the derivation until the next attempt.
"""

from __future__ import annotations

from collections.abc import Mapping

from kolm_build.core import cbor
from kolm_build.core.digest import Digest, RecordKind
from kolm_build.core.fields import Fields
from kolm_build.engine.protocol import Store

LOG = "log"
"""The key of the log's digest, as text, in a realisation's circumstances."""


def note_failure(store: Store, resolved: Digest, *, log: Digest, tree: Digest | None) -> None:
    """Note the log, and the failed tree if it was kept, of a build that failed."""
    value = {"log": log.raw, "tree": tree.raw if tree else None}
    store.memo_put(_failure_key(resolved), cbor.encode(value))


def failure_of(store: Store, resolved: Digest) -> Mapping[str, Digest] | None:
    """`log` and, if kept, `tree` of the last failed build; None where none failed."""
    data = store.memo_get(_failure_key(resolved))
    if data is None:
        return None
    fields = Fields(cbor.decode(data))
    log, tree = fields.take("log", bytes), fields.nullable("tree", bytes)
    return {"log": Digest(log)} | ({"tree": Digest(tree)} if tree is not None else {})


def log_of(store: Store, resolved: Digest, output: str) -> bytes | None:
    """The log of the build that made an output, or of the last one that failed to.

    Returns:
        None where it was never built here.

    Raises:
        MissingObjectError: It was built here, and the log is gone.
    """
    for stored in reversed(store.realisations(resolved, output)):
        log = stored.circumstances.get(LOG)
        if isinstance(log, str):
            return store.read_log(Digest.parse(log))
    failure = failure_of(store, resolved)
    return None if failure is None else store.read_log(failure["log"])


def _failure_key(resolved: Digest) -> Digest:
    return Digest.of_record(cbor.encode(["failure", resolved.raw]), RecordKind.MEMO)
