"""Opening the store that a command line means."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from kolm_build.store.local import LocalStore
from kolm_build.surfaces.places import find_root, store_root


def open_store(args: Namespace, *, read_only: bool = False) -> LocalStore:
    """The store of `args`: see spec/cli.md, CLI-11."""
    project = getattr(args, "project", None)
    start = Path.cwd() if project is None else find_root(project)
    return LocalStore.open(Path(store_root(args.store, start)), read_only=read_only)
