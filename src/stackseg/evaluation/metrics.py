"""Scores of a prediction: ratios taken once, at the end, from counts summed over the whole split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from stackseg.evaluation.boundary_metrics import BoundaryCounts, boundary_f1_per_class, boundary_iou_per_class
from stackseg.model.confusion import (
    Counts,
    Ratios,
    dice_per_class,
    iou_per_class,
    mean_iou,
    mean_of_present,
    pixel_accuracy,
    ratios,
)

# NaN and infinity have no JSON: what is undefined is null.
_PLAIN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ClassScore(BaseModel):
    """Scores of one class; a ratio without a denominator is None, and so are all of an absent class."""

    model_config = _PLAIN

    name: str
    absent: bool
    iou: float | None
    dice: float | None
    precision: float | None
    recall: float | None
    boundary_f1: float | None
    boundary_iou: float | None
    num_truth_pixels: int
    num_predicted_pixels: int


class Scores(BaseModel):
    """Scores of a split; `model_dump(mode="json")` gives plain JSON.

    `absent_classes` names the classes that occur in neither truth nor prediction; the means leave them out.
    `confusion` has truth as rows and prediction as columns, in the order of `classes`.
    """

    model_config = _PLAIN

    num_planes: int
    num_pixels: int
    mean_iou: float | None
    mean_dice: float | None
    pixel_accuracy: float | None
    frequency_weighted_iou: float | None
    boundary_tolerance_px: int | None
    boundary_band_px: int | None
    absent_classes: tuple[str, ...]
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]


class PlaneScore(BaseModel):
    """One row of the per-plane table; `iou` goes from class name to IoU, None where the plane lacks the class."""

    model_config = _PLAIN

    specimen: str
    plane: int
    mean_iou: float | None
    pixel_accuracy: float | None
    num_pixels: int
    iou: dict[str, float | None]


def scores_from(
    counts_cc: Counts, class_names: Sequence[str], *, num_planes: int, boundary: BoundaryCounts | None = None
) -> Scores:
    """Turn summed counts into scores.

    Parameters
    ----------
    counts_cc
        (C, C) confusion counts summed over all planes, rows truth.
    class_names
        The C names, in the order of the class indices.
    num_planes
        How many planes were summed.
    boundary
        Boundary counts summed over the same planes; without them boundary scores are None.
    """
    unmeasured: Ratios = (None,) * len(class_names)
    columns = zip(
        class_names,
        iou_per_class(counts_cc),
        dice_per_class(counts_cc),
        precision_per_class(counts_cc),
        recall_per_class(counts_cc),
        boundary_f1_per_class(boundary) if boundary else unmeasured,
        boundary_iou_per_class(boundary) if boundary else unmeasured,
        counts_cc.sum(axis=1).tolist(),
        counts_cc.sum(axis=0).tolist(),
        strict=True,
    )
    classes = tuple(
        ClassScore(
            name=name,
            absent=num_truth + num_predicted == 0,
            iou=iou,
            dice=dice,
            precision=precision,
            recall=recall,
            boundary_f1=boundary_f1,
            boundary_iou=boundary_iou,
            num_truth_pixels=num_truth,
            num_predicted_pixels=num_predicted,
        )
        for name, iou, dice, precision, recall, boundary_f1, boundary_iou, num_truth, num_predicted in columns
    )
    return Scores(
        num_planes=num_planes,
        num_pixels=int(counts_cc.sum()),
        mean_iou=mean_iou(counts_cc),
        mean_dice=mean_of_present(dice_per_class(counts_cc)),
        pixel_accuracy=pixel_accuracy(counts_cc),
        frequency_weighted_iou=frequency_weighted_iou(counts_cc),
        boundary_tolerance_px=boundary.tolerance_px if boundary else None,
        boundary_band_px=boundary.band_px if boundary else None,
        absent_classes=tuple(score.name for score in classes if score.absent),
        classes=classes,
        confusion=tuple(tuple(row) for row in counts_cc.tolist()),
    )


def plane_score(specimen: str, plane: int, counts_cc: Counts, class_names: Sequence[str]) -> PlaneScore:
    """Turn the counts of one plane into its row of the per-plane table.

    Parameters
    ----------
    specimen, plane
        Which plane it is.
    counts_cc
        (C, C) confusion counts of that plane, rows truth.
    class_names
        The C names, in the order of the class indices.
    """
    return PlaneScore(
        specimen=specimen,
        plane=plane,
        mean_iou=mean_iou(counts_cc),
        pixel_accuracy=pixel_accuracy(counts_cc),
        num_pixels=int(counts_cc.sum()),
        iou=dict(zip(class_names, iou_per_class(counts_cc), strict=True)),
    )


def precision_per_class(counts_cc: Counts) -> Ratios:
    """Return the share of each class's predicted pixels that are right, None for a class never predicted."""
    return ratios(np.diagonal(counts_cc), counts_cc.sum(axis=0))


def recall_per_class(counts_cc: Counts) -> Ratios:
    """Return the share of each class's true pixels that were found, None for a class that the truth lacks."""
    return ratios(np.diagonal(counts_cc), counts_cc.sum(axis=1))


def frequency_weighted_iou(counts_cc: Counts) -> float | None:
    """Return the mean IoU weighted by each class's share of true pixels, None without a pixel."""
    num_pixels = int(counts_cc.sum())
    if num_pixels == 0:
        return None
    # A class that the truth lacks weighs nothing, whether its IoU is 0 or None.
    weights: list[float] = (counts_cc.sum(axis=1) / num_pixels).tolist()
    pairs = zip(iou_per_class(counts_cc), weights, strict=True)
    return sum(iou * weight for iou, weight in pairs if iou is not None)
