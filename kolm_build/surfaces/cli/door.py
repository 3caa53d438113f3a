"""The program's one door: whatever a command raises leaves as a message and an exit status.

No traceback passes. An error that nobody foresaw is written to a file, because it is a mistake
of this program and its author will want to see it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from kolm_build.errors import Exit, KolmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kolm_build.surfaces.terminal import Terminal

EXIT_PIPE = 141
EXIT_TERMINATED = 143


class TerminatedError(KeyboardInterrupt):
    """SIGTERM arrived; everything unwinds as for ^C."""


def through_door(command: Callable[[], int], argv: Sequence[str], terminal: Terminal) -> int:
    """The exit status of `command`, its errors told to the user.

    Args:
        command: What to run.
        argv: Its arguments: whether ``--json`` is there, and the name a bug report needs.
        terminal: Where messages go.
    """
    try:
        return _finished(command, terminal)
    except BrokenPipeError:
        return _reader_left()
    except KeyboardInterrupt as interrupt:
        return _interrupted(interrupt, argv, terminal)
    except Exception as error:  # noqa: BLE001  # the door
        return _refused(error, argv, terminal)


def _finished(command: Callable[[], int], terminal: Terminal) -> int:
    try:
        status = command()
    except SystemExit as leaving:  # argparse has printed a help text
        status = leaving.code if isinstance(leaving.code, int) else 0
    terminal.out.flush()
    return status


def _refused(error: Exception, argv: Sequence[str], terminal: Terminal) -> int:
    from kolm_build.surfaces.cli.trouble import troubles_of

    try:
        troubles = troubles_of(error)
        status = Exit.OK
        for trouble in troubles or (_bug(error, argv),):
            terminal.tell(f"error: {trouble}", "red" if terminal.err_colour else "")
            status |= trouble.exit
            if "--json" in argv:
                terminal.give({"error": trouble.to_value(), "event": "error"})
    except BrokenPipeError:
        return _reader_left()
    return int(status)


def _bug(error: Exception, argv: Sequence[str]) -> KolmError:
    from kolm_build.surfaces.cli.trouble import save_report

    path = save_report(error, argv)
    advice = (
        f"What happened is written in {path}; please send it to the authors."
        if path
        else "Its report could not be written either."
    )
    return KolmError(f"this is a bug in kolm: {type(error).__name__}", advice=advice)


def _interrupted(interrupt: BaseException, argv: Sequence[str], terminal: Terminal) -> int:
    ended = isinstance(interrupt, TerminatedError)
    word = "terminated" if ended else "interrupted"
    status = EXIT_TERMINATED if ended else int(Exit.INTERRUPTED)
    try:
        terminal.tell(f"{word}: nothing is lost; run the same command to go on")
        if "--json" in argv:
            terminal.give({"event": word, "exit": status})
    except BrokenPipeError:
        return _reader_left()
    return status


def _reader_left() -> int:
    # The interpreter flushes stdout once more on its way out; let it, into nothing.
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nothing, stream.fileno())
    return EXIT_PIPE
