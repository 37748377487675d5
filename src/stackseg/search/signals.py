"""Signals that ask a search to end, kept from breaking off what must be closed first."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Signals noted until they are asked for: raised amid a library's callback, an interrupt may be swallowed there.

    Parameters
    ----------
    *numbers
        Signals to be noted instead of handled as before.
    patience
        Seconds after which the first of them is raised after all, wherever the process is; None for never.
    """

    def __init__(self, *numbers: int, patience: int | None = None) -> None:
        self.asked = False
        self._patience = patience
        self._former = {number: signal.signal(number, self._note) for number in numbers}

    def raise_asked(self) -> None:
        """Raise KeyboardInterrupt if one of the signals has come."""
        if self.asked:
            raise KeyboardInterrupt

    def restore(self) -> None:
        """Handle the signals as before."""
        for number, former in self._former.items():
            signal.signal(number, former)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.asked and self._patience is not None:
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.alarm(self._patience)
        self.asked = True


def ending_signals() -> list[int]:
    """Return the signals by which a search is asked to end; nohup's wish to outlive its terminal is respected."""
    numbers: list[int] = [signal.SIGINT, signal.SIGTERM]  # the latter is sent before a machine is taken away
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        numbers.append(hangup)
    return numbers


@contextmanager
def interruptible() -> Iterator[None]:
    """Let every signal that asks a search to end interrupt it, so that its run is closed."""
    former = {number: signal.signal(number, signal.default_int_handler) for number in ending_signals()}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
