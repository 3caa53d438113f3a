"""Several things at once: all of them, and no more than asked for."""

from threading import Event, Lock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolm_build.store.remote.many import at_once


@given(st.integers(0, 40), st.integers(1, 5))
def test_every_item_is_done_once(count, jobs):
    assert sorted(at_once(range(count), lambda item: item * 2, jobs=jobs)) == list(
        range(0, 2 * count, 2)
    )


def test_after_a_failure_nothing_new_is_begun_and_what_was_done_is_given():
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            raise ValueError("one")
        return item

    given_back = []
    with pytest.raises(ValueError, match="one"):
        given_back.extend(at_once(range(1000), work, jobs=1))
    assert len(begun) < 10
    assert given_back == [item for item in begun if item != 1]


def test_results_that_nobody_takes_are_not_heaped_up():
    begun, lock, some = [], Lock(), Event()

    def work(item: int) -> int:
        with lock:
            begun.append(item)
        some.set()
        return item

    results = at_once(range(1000), work, jobs=2)
    next(results)
    some.wait()
    results.close()
    assert len(begun) <= 6
