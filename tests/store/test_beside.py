"""The thread that works beside its owner."""

from threading import Event, get_ident

import pytest

from kolm_build.store.beside import Beside


def test_tasks_are_done_in_order_in_another_thread() -> None:
    seen: list[tuple[int, bool]] = []
    me = get_ident()
    with Beside() as other:
        tasks = [other.do(lambda n=n: seen.append((n, get_ident() != me))) for n in range(5)]
        assert [task.result() for task in tasks] == [None] * 5
    assert seen == [(n, True) for n in range(5)]


def test_what_a_task_raises_is_raised_where_its_result_is_asked_for() -> None:
    with Beside() as other:
        bad = other.do(lambda: 1 // 0)
        good = other.do(lambda: "still at work")
        with pytest.raises(ZeroDivisionError):
            bad.result()
        assert good.result() == "still at work"


def test_leaving_waits_for_what_was_handed_over() -> None:
    done: list[str] = []
    may = Event()
    with Beside() as other:
        other.do(lambda: may.wait(20) and done.append("done"))
        may.set()
    assert done == ["done"]
