"""Where text leaves the program: answers on stdout, everything else on stderr.

Text that came out of a model, a dataset or a step's log may hold control characters, which a
terminal would obey; they are shown as escapes there, and are left alone off a terminal.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self, TextIO

# Everything but tab and newline that moves a cursor, changes a colour or reverses the text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}


def harmless(text: str) -> str:
    """`text` with every control character but tab and newline written as an escape."""
    return _CONTROL.sub(lambda match: ascii(match.group())[1:-1], text)


def has_colour(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether `stream` is a terminal that wants colour: no-color.org, and no dumb terminal."""
    if environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
        return False
    return stream.isatty()


class Terminal:
    """The two streams a command may write to.

    Attributes:
        out: Answers; what a pipe wants.
        err: Progress, advice and errors; what a person wants.
        out_colour: Whether `out` may be coloured.
        err_colour: Whether `err` may be coloured.
    """

    __slots__ = ("err", "err_colour", "out", "out_colour")

    def __init__(
        self, *, out: TextIO, err: TextIO, out_colour: bool = False, err_colour: bool = False
    ) -> None:
        self.out = out
        self.err = err
        self.out_colour = out_colour
        self.err_colour = err_colour

    @classmethod
    def of_process(cls) -> Self:
        """The process's own streams."""
        out, err = _usable(sys.stdout), _usable(sys.stderr)
        return cls(
            out=out,
            err=err,
            out_colour=has_colour(out, os.environ),
            err_colour=has_colour(err, os.environ),
        )

    def say(self, text: str, style: str = "") -> None:
        """Print `text` as an answer."""
        print(_styled(text, style, self.out, colour=self.out_colour), file=self.out)

    def say_piece(self, text: str) -> None:
        """Print `text`, a part of an answer, at once and without an end of line."""
        print(_styled(text, "", self.out, colour=False), end="", file=self.out, flush=True)

    def give_file(self, path: Path) -> None:
        """Copy the bytes of the file `path` to stdout; a terminal is shown them as text."""
        if self.out.isatty():
            self.say_piece(path.read_text("utf-8", errors="backslashreplace"))
            return
        import shutil

        self.out.flush()
        with path.open("rb") as file:
            shutil.copyfileobj(file, self.out.buffer)
        self.out.buffer.flush()

    def tell(self, text: str, style: str = "") -> None:
        """Print `text` beside the answer."""
        print(_styled(text, style, self.err, colour=self.err_colour), file=self.err, flush=True)

    def give(self, value: object) -> None:
        """Print `value` as one line of JSON on stdout."""
        import json

        text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        print(text, file=self.out, flush=True)


def _usable(stream: TextIO | None) -> TextIO:
    if stream is None:  # the descriptor was closed by the caller: `kolm build >&-`
        return open(os.devnull, "w", encoding="utf-8")  # for the whole run
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


def _styled(text: str, style: str, stream: TextIO, *, colour: bool) -> str:
    shown = harmless(text) if stream.isatty() else text
    if not colour or not style:
        return shown
    return f"\x1b[{_CODES[style]}m{shown}\x1b[0m"
