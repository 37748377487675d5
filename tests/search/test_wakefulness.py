"""Who slept does not take others for dead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackseg.search import wakefulness as wakefulness_module
from stackseg.search.wakefulness import Wakefulness

GRACE = 60.0


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def time(self) -> float:
        return self.now


@given(st.lists(st.floats(0.5, 5.0), max_size=60))
def test_awake_all_the_time_it_is_awake_for_long(pauses: list[float]) -> None:
    assert all(answers(pauses))


@given(st.floats(GRACE / 2 + 1, 1e6) | st.floats(-1e6, -GRACE / 2 - 1))
def test_after_a_sleep_or_a_clock_that_was_set_it_waits_a_grace_period(jump: float) -> None:
    found = answers([1.0, jump, *[1.0] * 70])
    assert found[0]
    assert not any(found[1:62])
    assert all(found[62:])


@given(st.floats(1, 8), st.lists(st.floats(1.0, 9.0), max_size=20))
def test_a_busy_machine_does_not_sleep(grace: float, pauses: list[float]) -> None:
    assert all(answers(pauses, grace))


def answers(pauses: list[float], grace: float = GRACE) -> list[bool]:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(wakefulness_module, "time", clock)
        awake = Wakefulness(grace)
        found = []
        for pause in pauses:
            clock.now += pause
            found.append(awake.for_long())
    return found
