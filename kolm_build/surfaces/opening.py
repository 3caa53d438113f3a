"""Opening the store that a command line means."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from kolm_build.errors import UsageError
from kolm_build.store.local import LocalStore
from kolm_build.surfaces.places import find_root, store_root


def open_store(args: Namespace, *, read_only: bool = False) -> LocalStore:
    """The store of `args`: see spec/cli.md, CLI-11."""
    project = getattr(args, "project", None)
    start = Path.cwd() if project is None else find_root(project)
    return LocalStore.open(Path(store_root(args.store, start)), read_only=read_only)


def kept_folders(args: Namespace, store: LocalStore) -> Iterator[Path]:
    """The folders that no command replaces: see spec/cli.md, CLI-38."""
    yield from (Path.cwd(), store.root)
    try:
        yield Path(find_root(args.project))
    except UsageError:  # what is named by a digest or a file needs no project
        return
