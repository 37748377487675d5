"""Planes that are read ahead: which, how many, and what happens to their errors."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from stackseg.errors import DataError
from stackseg.prediction.prefetch import Prefetched


class Source:
    """A source that keeps which planes were read, and by how many threads; plane 6 is broken."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.threads: set[int] = set()

    def __len__(self) -> int:
        return 8

    def plane(self, z: int) -> np.ndarray:
        self.read.append(z)
        self.threads.add(threading.get_ident())
        if z == 6:
            raise DataError("broken", where="plane 6")
        return np.full((2, 2, 1), z)


def test_two_planes_are_read_ahead_and_none_twice() -> None:
    source = Source()
    with Prefetched(source, 5) as ahead:
        # as segment() asks with one plane of context: mirrored at the start
        assert [int(ahead.plane(z)[0, 0, 0]) for z in (1, 0)] == [1, 0]
        assert source.read == [1, 2, 3, 0]
        assert [int(ahead.plane(z)[0, 0, 0]) for z in (2, 3, 4)] == [2, 3, 4]
    assert source.read == [1, 2, 3, 0, 4]
    assert len(source.threads) == 1
    assert threading.get_ident() not in source.threads


def test_after_a_leap_it_reads_ahead_from_there() -> None:
    source = Source()
    with Prefetched(source, 6) as ahead:
        ahead.plane(0)
        ahead.plane(4)
        ahead.plane(0)
        ahead.plane(1)
        assert int(ahead.plane(5)[0, 0, 0]) == 5
    assert max(source.read) == 5


def test_a_broken_plane_is_told_where_it_is_asked_for() -> None:
    with Prefetched(Source(), 8) as ahead:
        ahead.plane(4)
        ahead.plane(5)
        with pytest.raises(DataError, match="plane 6: broken"):
            ahead.plane(6)
