"""Signals that ask a search to end."""

from __future__ import annotations

import os
import signal
import time

import pytest

from stackseg.studies.interrupts import Interrupts, ending_signals, interruptible


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_of_them_interrupts_and_is_then_handled_as_before(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_a_search_under_nohup_outlives_its_terminal() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in ending_signals()
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, former)
