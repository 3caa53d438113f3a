import io

from kolm_build.core.digest import Digest
from kolm_build.engine.events import (
    Built,
    Failed,
    LogLine,
    Metric,
    Progress,
    Reused,
    Started,
    Waiting,
)
from kolm_build.errors import StepFailedError
from kolm_build.surfaces.progress import ProgressLines, Running, duration, json_lines
from kolm_build.surfaces.terminal import Terminal

CONTENT = Digest.of_blob(b"")


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def started(node: str) -> Started:
    return Started(node=node, step="sft", derivation=CONTENT)


def built(node: str, *, fetched: bool = False, verified: bool = False) -> Built:
    contents = {"out": CONTENT}
    return Built(node=node, contents=contents, fetched=fetched, verified=verified, wall_ms=12_400)


def lines_of(*events: object) -> list[str]:
    terminal = Terminal(out=io.StringIO(), err=io.StringIO())
    with ProgressLines(terminal, clock=Clock()) as show:
        for event in events:
            show(event)
    assert terminal.out.getvalue() == ""
    return terminal.err.getvalue().splitlines()


def test_off_a_terminal_every_node_has_plain_lines():
    assert lines_of(
        Reused(node="base", contents={}),
        Reused(node="dataset", contents={}, cut_off=True),
        started("base-source"),
        built("base-source", fetched=True),
        Waiting(node="merge-1", holder="process 12"),
        started("train-1"),
        Progress(node="train-1", done=1, total=9, unit="step"),
        LogLine(node="train-1", text="hello"),
        Metric(node="train-1", name="loss", value="0.41"),
        built("train-1"),
        built("merge-1", verified=True),
        Failed(node="gate", derivation=CONTENT, error=StepFailedError("too low")),
    ) == [
        "base             cached",
        "dataset          cached (its inputs came out the same)",
        "base-source      building",
        "base-source      fetched in 12s",
        "merge-1          waiting for process 12",
        "train-1          building",
        "train-1          | hello",
        "train-1          loss 0.41",
        "train-1          built in 12s",
        "merge-1          verified in 12s: the same bytes again",
        "gate             failed: too low",
    ]


def test_on_a_terminal_running_nodes_are_redrawn_and_cleared_at_the_end():
    clock = Clock()
    terminal = Terminal(out=io.StringIO(), err=Screen())
    with ProgressLines(terminal, clock=clock) as show:
        show(started("train-1"))
        for step in (1, 2, 3):
            clock.now_s = 10.0 * step
            show(Progress(node="train-1", done=step, total=200, unit="step", loss="0.41"))
    text = terminal.err.getvalue()
    assert "building 3/200 loss 0.41 ETA 32m50s" in text
    assert text.endswith("\x1b[1F\x1b[J")


def test_a_line_on_a_terminal_is_no_longer_than_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    terminal = Terminal(out=io.StringIO(), err=Screen())
    with ProgressLines(terminal, clock=Clock()) as show:
        show(started("a-very-long-name-of-a-node-that-does-not-fit"))
    assert max(len(line) for line in terminal.err.getvalue().splitlines()) <= 30


def test_the_time_that_is_left_needs_two_reports():
    first = Progress(node="n", done=1, total=3, unit="step")
    running = Running(since_s=0).after(first, 5.0)
    assert running.text(5.0) == "building 1/3"
    second = Progress(node="n", done=2, total=3, unit="step")
    assert running.after(second, 7.0).text(7.0) == "building 2/3 ETA 2.0s"


def test_durations_are_short():
    texts = [duration(seconds) for seconds in (-1, 0.44, 9.96, 12, 59.6, 130, 3720)]
    assert texts == ["0.0s", "0.4s", "10.0s", "12s", "1m00s", "2m10s", "1h02m"]


def test_json_events_are_one_line_each_on_stdout():
    """CLI-4."""
    terminal = Terminal(out=io.StringIO(), err=io.StringIO())
    show = json_lines(terminal)
    show(LogLine(node="a", text="x\ny"))
    assert terminal.out.getvalue() == '{"event":"log","node":"a","text":"x\\ny"}\n'
