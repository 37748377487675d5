"""Signals that ask a search to end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from stackseg.search.signals import Interrupts, ending_signals


@pytest.fixture(autouse=True)
def _in_a_terminal() -> Iterator[None]:
    """Let SIGHUP not be ignored, as it is where the tests themselves run under nohup."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_recorded_until_they_are_asked_for(number: int) -> None:
    before = signal.getsignal(number)
    with Interrupts(*ending_signals()) as interrupts:
        interrupts.raise_asked()
        signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            interrupts.raise_asked()
        interrupts.raise_from_now_on()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_an_interrupt_that_nobody_asks_for_is_raised_in_the_end() -> None:
    with Interrupts(signal.SIGINT, patience=1):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            time.sleep(30)


def test_children_ignore_interrupts_until_they_handle_them() -> None:
    with Interrupts(signal.SIGINT) as interrupts:
        with interrupts.ignored_by_children():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        signal.raise_signal(signal.SIGINT)
        assert interrupts.asked


def test_a_search_under_nohup_outlives_its_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interrupts(*ending_signals()) as interrupts:
        signal.raise_signal(signal.SIGHUP)
        interrupts.raise_asked()
