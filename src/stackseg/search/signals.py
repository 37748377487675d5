"""Signals that ask a search to end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self


class Interrupts:
    """A context in which signals are recorded instead of raised: inside a library's callback one may be swallowed.

    Parameters
    ----------
    *numbers
        Signals to be recorded; after the context they are handled as before.
    patience
        Seconds after which the first of them is raised after all; None for never.
    """

    def __init__(self, *numbers: int, patience: int | None = None) -> None:
        self.asked = False
        self._numbers = numbers
        self._patience = patience

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._record) for number in self._numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def raise_asked(self) -> None:
        """Raise KeyboardInterrupt if one of the signals has come."""
        if self.asked:
            raise KeyboardInterrupt

    def raise_from_now_on(self) -> None:
        """Let the signals raise KeyboardInterrupt at once."""
        for number in self._numbers:
            signal.signal(number, signal.default_int_handler)

    @contextmanager
    def ignored_by_children(self) -> Iterator[None]:
        """Let processes that start inside ignore SIGINT: in the middle of its imports one would print a traceback."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        yield
        signal.signal(signal.SIGINT, self._record)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if not self.asked and self._patience is not None:
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.alarm(self._patience)
        self.asked = True


def ending_signals() -> list[int]:
    """Return the signals that ask a search to end; under nohup, SIGHUP is not among them."""
    numbers: list[int] = [signal.SIGINT, signal.SIGTERM]  # SIGTERM is sent before a machine is taken away
    return numbers if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [*numbers, signal.SIGHUP]
