"""Whether this machine has been awake for long enough to take another process for dead."""

from __future__ import annotations

import time

# a machine that is only busy may look as late as this
_BUSY_S = 10


class Wakefulness:
    """Notices that a machine slept, or that its clock was set: then all processes seem to have been silent.

    Parameters
    ----------
    grace
        Seconds of silence after which a process is taken for dead: four of its heartbeats. After a sleep of less than
        half of it, and a heartbeat's pause on either side, nobody has been silent for so long.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._looked = time.time()
        self._woke: float | None = None

    def for_long(self) -> bool:
        """Return whether the machine was awake throughout a grace period; to be asked about once a second."""
        now = time.time()
        if abs(now - self._looked) > max(self._grace / 2, _BUSY_S):
            self._woke = now
        self._looked = now
        return self._woke is None or now - self._woke > self._grace
