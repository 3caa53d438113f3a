"""How far a long copy is: one line on a terminal, nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kolm_build.surfaces.terminal import Terminal

_CLEAR = "\r\x1b[K"


@contextmanager
def shown_percent(
    terminal: Terminal, total_bytes: int, verb: str
) -> Iterator[Callable[[int], None]]:
    """Something to tell how many of `total_bytes` are done.

    Args:
        terminal: Where to; the line goes to its stderr, and only where that is a terminal.
        total_bytes: How many there will be.
        verb: What is being done to them, such as ``packed``.
    """
    if not terminal.err.isatty():
        yield lambda _: None
        return
    last = -1

    def show(done_bytes: int) -> None:
        nonlocal last
        percent = min(100, 100 * done_bytes // max(1, total_bytes))
        if percent != last:
            last = percent
            terminal.err.write(f"{_CLEAR}{verb} {percent} %")
            terminal.err.flush()

    try:
        yield show
    finally:
        if last >= 0:
            terminal.err.write(_CLEAR)
            terminal.err.flush()
