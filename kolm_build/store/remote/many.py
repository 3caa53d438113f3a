"""Several requests at once, by threads that nobody has to wait for.

(`concurrent.futures` has its threads joined when the program ends, and one of them may be waiting
for a server that does not answer.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from threading import Event, Lock, Semaphore, Thread
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_SIGNAL_S = 0.5
AHEAD = 2
"""How many results a thread may be ahead of who takes them."""


class _End:
    """What comes after the last item."""


_END = _End()


class _Work(Generic[T, R]):
    """What the threads share."""

    def __init__(self, items: Iterable[T], work: Callable[[T], R], room: int) -> None:
        self.items = iter(items)
        self.work = work
        self.lock = Lock()
        self.room = Semaphore(room)
        self.stop = Event()
        self.results: SimpleQueue[tuple[list[R], BaseException | None] | None] = SimpleQueue()

    def serve(self) -> None:
        """Do one item after another; None at the end."""
        while self.room.acquire() and not self.stop.is_set():
            with self.lock:
                item = next(self.items, _END)
            if isinstance(item, _End):
                break
            try:
                self.results.put(([self.work(item)], None))
            except BaseException as error:  # noqa: BLE001  # handed to who takes the results
                self.results.put(([], error))
        self.results.put(None)


def at_once(items: Iterable[T], work: Callable[[T], R], *, jobs: int) -> Iterator[R]:
    """What `work` gives for each item, in the order in which it is done.

    After a failure nothing new is begun; what is under way is still given, then the first failure
    is raised.

    Args:
        items: What is to be done.
        work: Does one of them, in a thread.
        jobs: How many threads.
    """
    todo = _Work(items, work, AHEAD * jobs)
    for _ in range(jobs):
        Thread(target=todo.serve, daemon=True).start()
    running, failure = jobs, None
    try:
        while running:
            # With an end to each wait: a signal that another thread receives does not end it.
            try:
                result = todo.results.get(timeout=_SIGNAL_S)
            except Empty:
                continue
            if result is None:
                running -= 1
                todo.room.release()
                continue
            done, error = result
            if error is not None:
                todo.stop.set()
                failure = failure or error
            yield from done
            todo.room.release()
    finally:
        todo.stop.set()
        todo.room.release(jobs)
    if failure is not None:
        raise failure
