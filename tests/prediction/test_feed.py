"""A writer in a thread: how far it may be behind, and how its errors and its end are noticed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from stackseg.prediction.feed import BEHIND, Feed


def test_items_come_in_order_and_few_wait() -> None:
    go_on = threading.Event()
    taken: list[int] = []

    def consume(items: Iterator[int]) -> None:
        for item in items:
            taken.append(item)
            go_on.wait()

    feed = Feed(consume)
    producer = threading.Thread(target=lambda: [feed.put(one) for one in range(10)])
    producer.start()
    time.sleep(0.3)
    assert taken == [0]
    assert feed._queue.qsize() == BEHIND
    go_on.set()
    producer.join()
    feed.finish()
    assert taken == list(range(10))


def test_an_error_of_the_consumer_is_raised_by_the_next_call() -> None:
    def consume(items: Iterator[int]) -> None:
        next(items)
        raise OSError("full")

    feed = Feed(consume)
    feed.put(0)
    with pytest.raises(OSError, match="full"):
        list(map(feed.put, range(100)))  # more than may wait
    with pytest.raises(OSError, match="full"):
        feed.check()
    with pytest.raises(OSError, match="full"):
        feed.finish()
    feed.abandon()


def test_a_consumer_that_is_abandoned_cleans_up_and_does_not_finish() -> None:
    ended: list[str] = []

    def consume(items: Iterator[int]) -> None:
        try:
            for _ in items:
                time.sleep(0.05)
            ended.append("finished")
        except Exception:
            ended.append("cleaned up")
            raise

    feed = Feed(consume)
    for one in range(3):
        feed.put(one)
    feed.abandon()
    assert ended == ["cleaned up"]
