"""What the command line shows while it works."""

from __future__ import annotations

from stackseg.cli.console import study_progress


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
