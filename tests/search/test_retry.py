"""Stale trials are noticed, but not by a machine that has just slept."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from stackseg.search import retry as retry_module
from stackseg.search.retry import StaleWatch

HEARTBEAT = 15  # a grace period of 60 s


@pytest.mark.parametrize(
    ("pauses", "looked"),
    [
        ([0.5, 5.0, 9.0] * 5, [True] * 15),
        ([1.0, 31.0, *[1.0] * 61], [True, *[False] * 60, *[True] * 2]),
        ([1.0, 1e6, *[1.0] * 61], [True, *[False] * 60, *[True] * 2]),
        ([1.0, -3600.0, *[1.0] * 61], [True, *[False] * 60, *[True] * 2]),
    ],
    ids=["awake", "short sleep", "long sleep", "clock set back"],
)
def test_after_a_sleep_nobody_is_taken_for_dead_for_a_grace_period(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float], looked: list[bool]
) -> None:
    clock, found = SimpleNamespace(now=1e9), []
    calls: list[object] = []
    monkeypatch.setattr(retry_module, "time", SimpleNamespace(time=lambda: clock.now))
    monkeypatch.setattr(retry_module, "fail_stale_trials", calls.append)
    watch = StaleWatch(None, HEARTBEAT)  # type: ignore[arg-type]
    for pause in pauses:
        clock.now += pause
        calls.clear()
        watch.look()
        found.append(bool(calls))
    assert found == looked
