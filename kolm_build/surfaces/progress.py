"""What a build is doing, one line a node: redrawn on a terminal, plain lines elsewhere.

A step that says nothing for a while still gets a line every half minute, so that neither a
person nor a CI system takes it for dead.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kolm_build.engine.events import (
    Built,
    Event,
    Failed,
    LogLine,
    Metric,
    Progress,
    Reused,
    Started,
    Substituted,
    SubstituterTrouble,
    Waiting,
)

if TYPE_CHECKING:
    from kolm_build.surfaces.terminal import Terminal

HEARTBEAT_S = 30.0
REDRAW_S = 0.1
NAME_COLUMNS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A node that is being built.

    Attributes:
        since_s: When its step started.
        first_s: When it first said how far it is.
        first_done: How far it was then.
        last: The last it said.
    """

    since_s: float
    first_s: float = 0.0
    first_done: int = 0
    last: Progress | None = None

    def after(self, progress: Progress, now_s: float) -> Running:
        """This node after `progress`."""
        if self.last is None:
            return replace(self, first_s=now_s, first_done=progress.done, last=progress)
        return replace(self, last=progress)

    def text(self, now_s: float) -> str:
        """Such as ``building 31/200 loss 0.41 ETA 2m10s``."""
        if self.last is None:
            return f"building {duration(now_s - self.since_s)}"
        words = [f"building {_far(self.last)}"]
        if self.last.loss is not None:
            words.append(f"loss {self.last.loss}")
        moved = self.last.done - self.first_done
        if moved > 0 and self.last.total:
            left_s = (now_s - self.first_s) / moved * (self.last.total - self.last.done)
            words.append(f"ETA {duration(left_s)}")
        return " ".join(words)


def _far(progress: Progress) -> str:
    """How far: ``31/200``, ``12/90 MB``, ``12 MB`` where nobody knows the total."""
    if progress.unit == "byte":
        done, total, unit = progress.done // 10**6, progress.total // 10**6, " MB"
    else:
        done, total, unit = progress.done, progress.total, ""
    return f"{done}/{total}{unit}" if progress.total else f"{done}{unit or ' ' + progress.unit}"


def duration(seconds: float) -> str:
    """`seconds` for people: ``0.4s``, ``12s``, ``2m10s``, ``1h02m``."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"


class ProgressLines:
    """Renders events. A context manager: leaving it clears the live lines.

    Args:
        terminal: Where to; lines go to its stderr.
        clock: Seconds, monotonic.
    """

    def __init__(self, terminal: Terminal, *, clock: Callable[[], float]) -> None:
        self._terminal = terminal
        self._clock = clock
        self._is_live = terminal.err.isatty()
        self._running: dict[str, Running] = {}
        self._drawn_lines = 0
        self._drawn_s = 0.0
        self._spoken_s: dict[str, float] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._heart.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._heart.join()
        self._clear()
        self._terminal.err.flush()

    def __call__(self, event: Event) -> None:
        """Show `event`."""
        with self._lock:
            self._show(event)

    def _show(self, event: Event) -> None:
        now_s = self._clock()
        match event:
            case Reused():
                self._line(event.node, _reused(event), "dim")
            case Substituted():
                self._running.pop(event.node, None)
                self._line(event.node, _substituted(event), "green")
            case SubstituterTrouble():
                self._line("substituter", _trouble(event), "yellow")
            case Waiting():
                self._line(event.node, f"waiting for {event.holder}", "yellow")
            case Started():
                self._running[event.node] = Running(since_s=now_s)
                self._draw_or_say(event.node, now_s)
            case Progress():
                running = self._running.get(event.node, Running(since_s=now_s))
                self._running[event.node] = running.after(event, now_s)
                self._draw(now_s)
            case LogLine():
                self._line(event.node, f"| {event.text}", "")
            case Metric():
                self._line(event.node, f"{event.name} {event.value}", "")
            case Built():
                self._running.pop(event.node, None)
                self._line(event.node, _built(event), "green")
            case Failed():
                self._running.pop(event.node, None)
                self._line(event.node, f"failed: {event.error.reason}", "red")

    def _line(self, node: str, text: str, style: str) -> None:
        self._clear()
        self._terminal.tell(f"{node:<{NAME_COLUMNS}} {text}", style)
        self._spoken_s[node] = self._clock()
        self._draw(self._clock(), force=True)

    def _draw_or_say(self, node: str, now_s: float) -> None:
        if self._is_live:
            self._draw(now_s, force=True)
        else:
            self._line(node, "building", "")

    def _draw(self, now_s: float, *, force: bool = False) -> None:
        if not self._is_live or (not force and now_s - self._drawn_s < REDRAW_S):
            return
        self._clear()
        columns = shutil.get_terminal_size().columns - 1
        for node, running in self._running.items():
            line = f"{node:<{NAME_COLUMNS}} {running.text(now_s)}"[:columns]
            self._terminal.tell(line, "yellow")
        self._drawn_lines = len(self._running)
        self._drawn_s = now_s

    def _clear(self) -> None:
        if self._drawn_lines:
            self._terminal.err.write(f"\x1b[{self._drawn_lines}F\x1b[J")
            self._drawn_lines = 0

    def _beat(self) -> None:
        while not self._stop.wait(1.0 if self._is_live else HEARTBEAT_S / 4):
            with self._lock:
                self._heartbeat(self._clock())

    def _heartbeat(self, now_s: float) -> None:
        self._draw(now_s)
        if self._is_live:
            return
        for node, running in self._running.items():
            if now_s - self._spoken_s.get(node, running.since_s) >= HEARTBEAT_S:
                self._line(node, running.text(now_s), "")


def _reused(event: Reused) -> str:
    return "cached (its inputs came out the same)" if event.cut_off else "cached"


def _substituted(event: Substituted) -> str:
    if not event.sources:
        return "known from substituters"
    return f"copied {event.bytes_fetched / 1e6:.1f} MB from {', '.join(event.sources)}"


def _trouble(event: SubstituterTrouble) -> str:
    actual = f" ({event.error.actual})" if event.error.actual else ""
    return f"{event.error.file or event.url}: {event.error.reason}{actual}"


def _built(event: Built) -> str:
    if event.verified:
        return f"verified in {duration(event.wall_ms / 1000)}: the same bytes again"
    word = "fetched" if event.fetched else "built"
    return f"{word} in {duration(event.wall_ms / 1000)}"


def trouble_lines(terminal: Terminal) -> Callable[[Event], None]:
    """Prints what is wrong with substituters, and nothing else."""

    def tell(event: Event) -> None:
        if isinstance(event, SubstituterTrouble):
            terminal.tell(f"{'substituter':<{NAME_COLUMNS}} {_trouble(event)}", "yellow")

    return tell


def json_lines(terminal: Terminal) -> Callable[[Event], None]:
    """Prints each event as one line of JSON."""

    def give(event: Event) -> None:
        terminal.give(event.to_value())

    return give


@contextmanager
def shown_events(terminal: Terminal, *, json: bool) -> Iterator[Callable[[Event], None]]:
    """What takes events: JSON lines where asked for, lines for people else."""
    if json:
        yield json_lines(terminal)
        return
    with ProgressLines(terminal, clock=monotonic) as show:
        yield show
