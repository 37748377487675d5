"""What the stages show: a training's progress, and the table of scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stackseg.cli.console import count_of_planes, figure, say, table, training_progress, warn

if TYPE_CHECKING:
    import torch

    from stackseg.evaluation.bootstrap import Interval
    from stackseg.evaluation.evaluate import Evaluation
    from stackseg.training.callbacks import ValidationPlane
    from stackseg.training.train import EpochReport, TrainingStart


def show_scores(evaluation: Evaluation) -> None:
    """Print the score table."""
    scores = evaluation.scores
    table(
        f"{evaluation.part} part, {count_of_planes(scores.num_planes)}",
        ("class", "IoU", "Dice", "precision", "recall", "boundary F1", "boundary IoU"),
        [
            (one.name, one.iou, one.dice, one.precision, one.recall, one.boundary_f1, one.boundary_iou)
            for one in scores.classes
        ],
    )
    say(
        f"mean IoU {figure(scores.mean_iou)}, mean Dice {figure(scores.mean_dice)}, "
        f"pixel accuracy {figure(scores.pixel_accuracy)}, "
        f"frequency-weighted IoU {figure(scores.frequency_weighted_iou)}"
    )
    say(f"mean IoU interval: {_interval(evaluation.mean_iou_interval)}")
    say(f"within planes only: {_interval(evaluation.mean_iou_interval_within_planes)}")
    if evaluation.rand_vi is not None:
        say(f"V_rand {figure(evaluation.rand_vi.v_rand)}, V_info {figure(evaluation.rand_vi.v_info)} after thinning")
    if (objects := evaluation.objects) is not None:
        say(
            f"objects: F1 {figure(objects.f1['0.5'])} at an IoU of 0.5, mean AP {figure(objects.mean_ap)}; "
            f"{objects.num_predicted} found, {objects.num_truth} true"
        )
        say(f"F1 interval: {_interval(objects.f1_interval)}")
    for line in evaluation.warnings:
        warn(line)


def _interval(interval: Interval) -> str:
    if interval.low is None:
        return f"null ({interval.reason})"
    return (
        f"{figure(interval.low)} to {figure(interval.high)} at {interval.confidence:.0%}, "
        f"{interval.num_units} units: {interval.unit}"
    )


class ShownTraining:
    """Callback that draws the progress bar: loss, validation IoU, time left."""

    def __enter__(self) -> ShownTraining:
        self._progress = training_progress()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def on_start(self, start: TrainingStart) -> None:
        """Open the bar."""
        if start.damaged_checkpoints is not None:
            warn(f"damaged checkpoints were put aside as {start.damaged_checkpoints}: training begins anew")
        if start.first_epoch == start.num_epochs:
            say("all epochs of an equal training are there: its model is written again")
        elif start.first_epoch:
            say(f"going on at epoch {start.first_epoch + 1} of an interrupted training")
        elif start.parent is not None:
            say(f"beginning with the weights of {start.parent}, bundle {start.parent.digest[:12]}")
        say(
            f"training {start.num_parameters / 1e6:.1f} M parameters on {start.device} in {start.precision}, "
            f"{start.num_epochs} epochs of {start.steps_per_epoch} steps"
        )
        self._start = start
        self._task = self._progress.add_task(
            "training",
            total=start.num_epochs * start.steps_per_epoch,
            completed=start.first_epoch * start.steps_per_epoch,
            epoch=f"{start.first_epoch}/{start.num_epochs}",
            loss="-",
            iou="-",
        )
        self._progress.start()

    def on_step(self, epoch: int, step: int, loss: torch.Tensor) -> None:
        """Move the bar."""
        self._progress.advance(self._task)

    def on_validation(self, report: EpochReport, planes: Sequence[ValidationPlane]) -> None:
        """Show no picture."""

    def on_epoch(self, report: EpochReport) -> None:
        """Show loss and validation IoU; without a terminal, a line per validation."""
        epoch = f"{report.epoch + 1}/{self._start.num_epochs}"
        self._progress.update(self._task, epoch=epoch, loss=f"{report.loss:.3f}")
        if report.validation_mean_iou is None:
            return
        score = f"{report.validation_mean_iou:.4f}{' (best)' if report.best else ''}"
        self._progress.update(self._task, iou=score)
        if not self._progress.console.is_terminal:
            say(
                f"epoch {epoch}: loss {report.loss:.3f}, validation mean IoU {score}, "
                f"{report.patches_per_second:.0f} patches/s"
            )
