"""One thread that works beside its owner: what is hashed or written while the next is read.

`concurrent.futures` does more, and takes as long to import as a small tree takes to be stored.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Generic, NoReturn, Self, TypeVar

T = TypeVar("T")


class Task(Generic[T]):
    """Something that was handed over.

    Args:
        work: What is to be done.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._done: SimpleQueue[Callable[[], T]] = SimpleQueue()

    def run(self) -> None:
        """Do it, in the thread that works beside."""
        try:
            made = self._work()
        except BaseException as error:  # noqa: BLE001  # handed to whoever asks for the result
            self._done.put(_raiser(error))
        else:
            self._done.put(lambda: made)

    def result(self) -> T:
        """What came out, once it is there; asked for once. Raises what the work raised."""
        return self._done.get()()


def _raiser(error: BaseException) -> Callable[[], NoReturn]:
    def give() -> NoReturn:
        raise error

    return give


class Beside:
    """The thread. Leaving it waits until everything that was handed over is done."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[Task[object] | None] = SimpleQueue()
        self._thread = Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tasks.put(None)
        self._thread.join()

    def do(self, work: Callable[[], T]) -> Task[T]:
        """Hand over; tasks are done in the order in which they come."""
        task = Task(work)
        self._tasks.put(task)  # type: ignore[arg-type]  # its result goes to who handed it over
        return task

    def _serve(self) -> None:
        while (task := self._tasks.get()) is not None:
            task.run()
