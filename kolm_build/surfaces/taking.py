"""Environments from elsewhere than the interpreter that runs kolm: another one's, taken in."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence

from kolm_build.core.environment import Environment
from kolm_build.engine.environment import InstalledEnvironment, capture
from kolm_build.engine.probe import probe_interpreter
from kolm_build.engine.stored import Stored, add, find
from kolm_build.store.local import LocalStore

OnFiles = Callable[[int], None]
"""Told how many files are taken in, which takes a while."""


def take(
    roots: Sequence[str], args: Namespace, store: LocalStore, on_files: OnFiles
) -> Environment | None:
    """The environment that `roots` make where `args` say, taken into `store`; None for nowhere.

    Raises:
        MachineMismatchError: It cannot be had; see `capture`.
    """
    if args.python is None:
        return None
    interpreter = probe_interpreter(args.python)
    environment = capture(roots, memo=store, interpreter=interpreter)
    if find(store, environment.digest) is None:
        add(environment, store, interpreter=interpreter, on_files=on_files)
    return environment


def take_locked(
    locked: Environment, args: Namespace, store: LocalStore, on_files: OnFiles
) -> Stored:
    """The `locked` environment from where `args` say, taken into `store`.

    Raises:
        MachineMismatchError: What is there is another; the message says what differs.
    """
    interpreter = probe_interpreter(args.python)
    installed = InstalledEnvironment([locked], memo=store, interpreter=interpreter)
    installed.check(locked.digest, thorough=True)
    return add(locked, store, interpreter=interpreter, on_files=on_files)
