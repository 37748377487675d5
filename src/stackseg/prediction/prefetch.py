"""Planes that are read ahead while others are computed."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from stackseg.dataset.channels import PlaneSource

Plane = npt.NDArray[np.generic]
AHEAD = 2
"""How many planes are read before they are asked for."""


class Prefetched:
    """A source whose planes are read by a thread, the next two before they are asked for.

    One thread alone reads, so that the source need not know of it. What reading a plane raises is raised where the
    plane is asked for.

    Parameters
    ----------
    source
        Planes (Y, X, C).
    stop
        No plane from this number on is read ahead.
    """

    def __init__(self, source: PlaneSource, stop: int) -> None:
        self._source = source
        self._stop = stop
        self._coming: dict[int, Future[Plane]] = {}
        self._thread = ThreadPoolExecutor(1, "read-ahead")

    def __len__(self) -> int:
        return len(self._source)

    def plane(self, z: int) -> Plane:
        """Return plane z as (Y, X, C) in its raw type."""
        # a neighbour before the run (context is mirrored at the ends) does not break it off
        goes_on = not self._coming or z >= min(self._coming)
        plane = self._coming.pop(z, None) or self._thread.submit(self._source.plane, z)
        if goes_on:
            ahead = range(z + 1, min(z + 1 + AHEAD, self._stop))
            for stale in [one for one in self._coming if one not in ahead]:
                self._coming.pop(stale).cancel()
            for one in ahead:
                if one not in self._coming:
                    self._coming[one] = self._thread.submit(self._source.plane, one)
        return plane.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)
