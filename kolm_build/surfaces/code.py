"""The code trees of the steps, from this installation of kolm_build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import kolm_build
from kolm_build.core.digest import Digest
from kolm_build.core.lock import Lock
from kolm_build.engine.code import code_tree
from kolm_build.errors import StaleLockError
from kolm_build.steps.table import STEPS
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.trees import digest_of, keep


def code_of(step: str) -> Mapping[str, bytes]:
    """The files of the code tree of `step`."""
    return code_tree(STEPS[step].module, Path(kolm_build.__file__).parent)


def lock_code(steps: tuple[str, ...], store: LocalStore) -> Mapping[str, Digest]:
    """The code tree of every one of `steps`, in the store."""
    return {step: keep(code_of(step), store) for step in steps}


def keep_locked_code(lock: Lock, store: LocalStore) -> None:
    """Make the store hold the code that `lock` names.

    Code of an older kolm is used as it is where the store has it: the lock decides what runs.

    Raises:
        StaleLockError: The store does not have it, and this kolm has other code.
    """
    here = store.pin(lock.code.values())
    for step, locked in lock.code.items():
        if locked in here:
            continue
        files = code_of(step)
        if digest_of(files) != locked:
            raise StaleLockError(
                f"the code of the step {step} is not what was locked",
                where=f"code {step}",
                expected=str(locked),
                actual=str(digest_of(files)),
                advice="This is another version of kolm than the one that locked. Use that one, or"
                " run `kolm lock` and look at `kolm lock diff`.",
            )
        keep(files, store)
