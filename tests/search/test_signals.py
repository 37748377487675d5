"""Signals that ask a search to end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from stackseg.search.signals import Interrupts, ending_signals, interruptible


def test_interrupts_are_noted_until_they_are_asked_for() -> None:
    interrupts = Interrupts(signal.SIGINT, signal.SIGTERM, patience=1)
    try:
        interrupts.raise_asked()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            interrupts.raise_asked()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(30)
    finally:
        interrupts.restore()


@pytest.fixture
def in_a_terminal() -> Iterator[None]:
    """Have the terminal's end not ignored, as it would be where the tests themselves run under nohup."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


@pytest.mark.usefixtures("in_a_terminal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_of_them_interrupts_and_is_then_handled_as_before(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


@pytest.mark.usefixtures("in_a_terminal")
def test_a_search_under_nohup_outlives_its_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert signal.SIGHUP not in ending_signals()
    with interruptible():
        signal.raise_signal(signal.SIGHUP)
