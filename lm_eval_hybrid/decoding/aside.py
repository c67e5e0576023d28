"""A thread beside this one, for what may be waited for elsewhere meanwhile."""

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


class Aside:
    """Does one thing after the other, in a thread of its own.

    Not an executor of the standard library: an interpreter that is interrupted would wait for that one's thread, and so
    for a server that may not answer for long.
    """

    def __init__(self) -> None:
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        Thread(target=self._work, name="aside", daemon=True).start()

    def run(self, work: Callable[[], T]) -> Future[T]:
        """Begin this after what was begun before."""
        future: Future[T] = Future()
        self._tasks.put((future, work))
        return future

    def close(self) -> None:
        """End the thread, after what was begun."""
        self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, work = task
            try:
                future.set_result(work())
            except BaseException as error:  # whatever it is, it is the asking thread's
                future.set_exception(error)
            # What came of it may be large, and the next task may come late.
            del task, future, work
