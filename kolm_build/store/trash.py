"""The trash: what has left its place, and is unlinked later."""

from __future__ import annotations

import os
from contextlib import suppress

from kolm_build.store.layout import Layout
from kolm_build.store.session import remove_tree


def to_trash(layout: Layout, path: str) -> None:
    """Take a file out of its place."""
    with suppress(FileNotFoundError):
        os.rename(path, f"{layout.folder('trash')}/{os.urandom(12).hex()}")


def empty_trash(layout: Layout) -> None:
    """Unlink what was taken out of its place."""
    for name in os.listdir(layout.folder("trash")):
        path = f"{layout.folder('trash')}/{name}"
        with suppress(FileNotFoundError):
            if os.path.isdir(path) and not os.path.islink(path):
                remove_tree(path)
            else:
                os.unlink(path)
