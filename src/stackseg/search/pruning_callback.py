"""A trial, followed epoch by epoch: what the pruner is told, and what ends a training before its time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlflow
import torch
from optuna.trial import Trial, TrialState

from stackseg.search.study import RUN_ID
from stackseg.training.callbacks import EpochReport, TrainingStart, TrainingStopped, ValidationPlane


class TrialTaken(Exception):  # noqa: N818  # no error of the trial
    """The trial was ended elsewhere, while this worker was taken for dead."""


class Follower:
    """Callback that reports epochs to the pruner, and ends the training if the pruner or the search says so."""

    def __init__(self, trial: Trial, most_epochs: int, must_end: Callable[[], bool]) -> None:
        self._trial = trial
        self._must_end = must_end
        self._most_epochs = most_epochs
        self._num_epochs = most_epochs
        self._last_step = 0
        self.reports = False
        self.may_prune = True
        self.notes_run = True

    def on_start(self, start: TrainingStart) -> None:
        """Note the run, so that it can be closed if this process dies."""
        self._num_epochs = start.num_epochs
        run = mlflow.active_run()
        if run is not None and self.notes_run:
            self._trial.set_user_attr(RUN_ID, run.info.run_id)

    def on_step(self, epoch: int, step: int, loss: torch.Tensor) -> None:
        """End with the process that started this worker, or when it says so."""
        if self._must_end():
            raise KeyboardInterrupt

    def on_validation(self, report: EpochReport, planes: Sequence[ValidationPlane]) -> None:
        """Show no picture."""

    def on_epoch(self, report: EpochReport) -> None:
        """Report the epoch's score."""
        if is_taken(self._trial):
            raise TrialTaken
        if not self.reports or report.validation_mean_iou is None:
            return
        # trials of fewer epochs are compared with the longest at the same share of their schedules
        step = (report.epoch + 1) * self._most_epochs // self._num_epochs
        if step <= self._last_step:  # Optuna keeps the first report of a step
            return
        self._last_step = step
        self._trial.report(report.validation_mean_iou, step=step)
        # what is trained to its last epoch has a score
        if report.epoch + 1 == self._num_epochs:
            return
        # asked in any case: the pruner notes who has come so far, and compares others with them
        if self._trial.should_prune() and self.may_prune:
            raise TrainingStopped(f"pruned at epoch {report.epoch + 1}")


def is_taken(trial: Trial) -> bool:
    """Return whether others have ended the trial, as they do where a worker is suspended or starved for too long."""
    return trial.study.get_trials(deepcopy=False)[trial.number].state != TrialState.RUNNING
