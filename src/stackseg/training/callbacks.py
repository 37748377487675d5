"""What a training tells those who follow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from stackseg.model.bundle import ParentRecord


@dataclass(frozen=True)
class EpochReport:
    """One epoch: mean loss and pixel accuracy on the training patches; validation scores where it validated.

    `lr` is the rate of the next step.
    """

    epoch: int
    loss: float
    training_pixel_accuracy: float
    lr: float
    seconds: float
    patches_per_second: float
    validation_mean_iou: float | None = None
    validation_pixel_accuracy: float | None = None
    validation_iou: dict[str, float | None] | None = None
    best: bool = False


@dataclass(frozen=True)
class TrainingStart:
    """What a training begins with; `checkpoint_folder` is where an interrupted one finds its notes again.

    `damaged_checkpoints` is where the checkpoints of an interrupted one were put if they cannot be read, `parent` the
    model whose weights it began with.
    """

    num_epochs: int
    steps_per_epoch: int
    first_epoch: int
    device: str
    precision: str
    num_parameters: int
    checkpoint_folder: Path
    history: tuple[EpochReport, ...]
    damaged_checkpoints: Path | None = None
    parent: ParentRecord | None = None


class TrainingStopped(Exception):  # noqa: N818  # no error
    """Raised by a callback to end a training that is not worth going on with; nothing has failed."""


@dataclass(frozen=True)
class ValidationPlane:
    """A validation plane to look at: raw image (Y, X, C), true and predicted class indices (Y, X)."""

    specimen: str
    z: int
    image_yxc: npt.NDArray[np.generic]
    truth_yx: npt.NDArray[np.uint8]
    prediction_yx: npt.NDArray[np.uint8]


class Callback(Protocol):
    """Whoever wants to follow a training, on the first process only; an exception from it ends the training."""

    def on_start(self, start: TrainingStart) -> None:
        """Hear that training begins or goes on."""
        ...

    def on_step(self, epoch: int, step: int, loss: torch.Tensor) -> None:
        """Hear of a step; reading the loss waits for the device."""
        ...

    def on_validation(self, report: EpochReport, planes: Sequence[ValidationPlane]) -> None:
        """Look at what an epoch makes of the same few validation planes; `on_epoch` follows."""
        ...

    def on_epoch(self, report: EpochReport) -> None:
        """Hear of an epoch."""
        ...
