"""A thread that writes what is computed, at most two planes behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Generic, TypeVar

T = TypeVar("T")
BEHIND = 2
"""How many items wait for the writer at most."""


class Feed(Generic[T]):
    """Hands items to a consumer in a thread of its own.

    What the consumer raises is raised by the next call here. A consumer whose feed is abandoned meets an exception
    where it waits for the next item, and so cleans up as after any fault.
    """

    def __init__(self, consume: Callable[[Iterator[T]], None]) -> None:
        self._queue: Queue[T | _Abandoned | None] = Queue(BEHIND)
        self._thread = ThreadPoolExecutor(1, "write-behind")
        self._consumer = self._thread.submit(consume, self._items())

    def check(self) -> None:
        """Raise what the consumer has raised."""
        if self._consumer.done():
            self._consumer.result()

    def put(self, item: T) -> None:
        """Hand over an item; waits while two others are waiting."""
        self._put(item)

    def finish(self) -> None:
        """Say that there is no more, and wait until all is written."""
        self._put(None)
        self._consumer.result()
        self._thread.shutdown()

    def abandon(self) -> None:
        """End the consumer, and wait until it has cleaned up; what it raises then is not told."""
        with suppress(Empty):
            while True:
                self._queue.get_nowait()
        self._queue.put_nowait(_Abandoned())
        wait([self._consumer])
        self._thread.shutdown()

    def _put(self, item: T | None) -> None:
        while True:
            self.check()
            with suppress(Full):
                self._queue.put(item, timeout=0.1)
                return

    def _items(self) -> Iterator[T]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, _Abandoned):
                raise item
            yield item


class _Abandoned(Exception):  # noqa: N818  # no fault: the work was given up elsewhere
    """Nothing more will come."""
