"""What the command line shows while it works."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from rich.console import Console

from stackseg.cli import console
from stackseg.cli.console import counting_pixels, study_progress


def test_the_time_left_is_known_however_long_a_trial_takes() -> None:
    now = 0.0
    progress = study_progress()
    progress.get_time = lambda: now
    task = progress.add_task("study", total=30, best="-", pruned=0)
    for done in range(1, 15):
        now = 400.0 * done
        progress.update(task, completed=done)
    left = progress.tasks[0].time_remaining
    assert left is not None
    assert abs(left - 16 * 400) < 500


def test_planes_are_counted_with_how_fast_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "err", lambda: Console(stderr=True, force_terminal=True, no_color=True, width=120))
    now = iter([100.0, 104.0])
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(now)))
    with counting_pixels("segmenting") as progress:
        progress(7, 9, 6_000_000)  # five of them are from before
    assert "7/9 planes, 1.50 megapixels/s," in capsys.readouterr().err
