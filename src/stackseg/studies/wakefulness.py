"""Whether this machine has been awake for long enough to take another process for dead."""

from __future__ import annotations

import time


class Wakefulness:
    """Notices that a machine slept, or that its clock was set: then all processes seem to have been silent.

    Parameters
    ----------
    heartbeat
        Seconds between signs of life.
    grace
        Seconds of silence after which a process is taken for dead.
    """

    def __init__(self, heartbeat: float, grace: float) -> None:
        self._heartbeat = heartbeat
        self._grace = grace
        self._looked = time.time()
        self._woke: float | None = None

    def for_long(self) -> bool:
        """Return whether the machine was awake throughout a grace period; to be asked about once a second."""
        now = time.time()
        if abs(now - self._looked) > self._heartbeat:
            self._woke = now
        self._looked = now
        return self._woke is None or now - self._woke > self._grace
