"""The callback of a trial's training: it reports to the pruner, and ends the training early."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlflow
import torch
from optuna.trial import Trial, TrialState

from stackseg.search.progress import RUN_ID
from stackseg.training.callbacks import EpochReport, TrainingStart, TrainingStopped, ValidationPlane


class TrialTakenOver(Exception):  # noqa: N818  # no error of the trial
    """The trial was ended by others, who took this worker for dead."""


class PruningCallback:
    """Reports each epoch's score to the pruner, and ends the training if the pruner or the search says so.

    Parameters
    ----------
    trial
        The trial that trains.
    max_epochs
        Epochs of the longest training in the space.
    must_end
        Whether the worker has been told to end.
    """

    def __init__(self, trial: Trial, max_epochs: int, must_end: Callable[[], bool]) -> None:
        self._trial = trial
        self._must_end = must_end
        self._max_epochs = max_epochs
        self._num_epochs = max_epochs
        self._last_step = 0
        self.reports = False
        self.may_prune = True
        self.records_run = True

    def on_start(self, start: TrainingStart) -> None:
        """Record the run in the trial, so that it can be closed if this process dies."""
        self._num_epochs = start.num_epochs
        run = mlflow.active_run()
        if run is not None and self.records_run:
            self._trial.set_user_attr(RUN_ID, run.info.run_id)

    def on_step(self, epoch: int, step: int, loss: torch.Tensor) -> None:
        """End the training if the worker has been told to end."""
        if self._must_end():
            raise KeyboardInterrupt

    def on_validation(self, report: EpochReport, planes: Sequence[ValidationPlane]) -> None:
        """Show no picture."""

    def on_epoch(self, report: EpochReport) -> None:
        """Report the epoch's score."""
        if is_taken_over(self._trial):
            raise TrialTakenOver
        if not self.reports or report.validation_mean_iou is None:
            return
        # a shorter training is compared with the longest at the same share of its schedule
        step = (report.epoch + 1) * self._max_epochs // self._num_epochs
        if step <= self._last_step:  # Optuna keeps the first report of a step
            return
        self._last_step = step
        self._trial.report(report.validation_mean_iou, step=step)
        # a training that has reached its last epoch is complete
        if report.epoch + 1 == self._num_epochs:
            return
        # ask in any case: the pruner records the trial's rung, and compares others with it
        if self._trial.should_prune() and self.may_prune:
            raise TrainingStopped(f"pruned at epoch {report.epoch + 1}")


def is_taken_over(trial: Trial) -> bool:
    """Return whether others have ended the trial, as they do when a worker was suspended or starved for too long."""
    return trial.study.get_trials(deepcopy=False)[trial.number].state != TrialState.RUNNING
