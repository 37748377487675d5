"""Confusion counts that add up over planes, and the ratios that training watches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from stackseg.dataset.labels.table import IGNORE_INDEX
from stackseg.errors import DataError

Counts = npt.NDArray[np.int64]
Ratios = tuple[float | None, ...]


def confusion_counts(
    truth_yx: npt.NDArray[np.integer], prediction_yx: npt.NDArray[np.integer], num_classes: int
) -> Counts:
    """Count the pixels of each (true, predicted) pair of classes, leaving out ignored pixels.

    Parameters
    ----------
    truth_yx
        Class indices, `IGNORE_INDEX` where nobody knows; any shape.
    prediction_yx
        Class indices of the same shape.
    num_classes
        The number of classes C of the table, whether or not all occur here.

    Returns
    -------
    counts_cc
        (C, C) int64, rows truth and columns prediction. Counts of parts of an image sum to those of the whole.

    Raises
    ------
    DataError
        If the shapes differ, or a value is no class.
    """
    if truth_yx.shape != prediction_yx.shape:
        raise DataError(
            f"a prediction of shape {prediction_yx.shape}",
            expected=f"{truth_yx.shape}, as the truth has",
            remedy="predict and annotate the same planes at the same size",
        )
    _check_classes(prediction_yx, num_classes, "prediction")
    known = truth_yx != IGNORE_INDEX
    truth_n = truth_yx[known]
    _check_classes(truth_n, num_classes, "truth")
    pairs_n = truth_n.astype(np.int64) * num_classes + prediction_yx[known]
    return np.bincount(pairs_n, minlength=num_classes**2).astype(np.int64).reshape(num_classes, num_classes)


def count_as_first(prediction_yx: npt.NDArray[np.uint8], classes: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return predicted class indices (Y, X) with the first class in the place of some.

    Where nobody annotated a class, its pixels are among those of the first class, and predicting it is no mistake.
    """
    return np.where(np.isin(prediction_yx, classes), np.uint8(0), prediction_yx) if classes else prediction_yx


def iou_per_class(counts_cc: Counts) -> Ratios:
    """Return intersection over union of each class, None for one absent from truth and prediction."""
    hits_c, truth_c, predicted_c = _hits_and_totals(counts_cc)
    return ratios(hits_c, truth_c + predicted_c - hits_c)


def dice_per_class(counts_cc: Counts) -> Ratios:
    """Return the Dice coefficient of each class, None for one absent from truth and prediction."""
    hits_c, truth_c, predicted_c = _hits_and_totals(counts_cc)
    return ratios(2 * hits_c, truth_c + predicted_c)


def mean_of_present(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are there, None if none is."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def mean_iou(counts_cc: Counts) -> float | None:
    """Return the mean IoU over the classes that occur in truth or prediction, None without a pixel."""
    return mean_of_present(iou_per_class(counts_cc))


def pixel_accuracy(counts_cc: Counts) -> float | None:
    """Return the share of pixels predicted right, None without a pixel."""
    num_pixels = int(counts_cc.sum())
    return int(np.trace(counts_cc)) / num_pixels if num_pixels else None


def ratios(numerator_c: Counts, denominator_c: Counts) -> Ratios:
    """Divide counts, with None where there is nothing to divide by.

    Parameters
    ----------
    numerator_c, denominator_c
        (C,) counts.
    """
    return tuple(
        num / den if den else None for num, den in zip(numerator_c.tolist(), denominator_c.tolist(), strict=True)
    )


def _hits_and_totals(counts_cc: Counts) -> tuple[Counts, Counts, Counts]:
    return np.diagonal(counts_cc), counts_cc.sum(axis=1), counts_cc.sum(axis=0)


def _check_classes(values: npt.NDArray[np.integer], num_classes: int, name: str) -> None:
    if values.size == 0:
        return
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"the {name} holds the value {low if low < 0 else high}",
            expected=f"class indices from 0 to {num_classes - 1}",
            remedy="check that truth and prediction use the same table of classes",
        )
