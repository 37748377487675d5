"""How well the outlines of each class are met: counts that add up over planes, then boundary F1 and boundary IoU.

A boundary pixel of a class is one of its pixels that touches, by side or corner, a pixel of another class. The rim of
the image and the rim of an ignored region are no boundaries: what lies behind them is not known.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree

from stackseg.dataset.labels.table import IGNORE_INDEX
from stackseg.model.confusion import Ratios, ratios


@dataclass(frozen=True)
class BoundaryCounts:
    """Boundary pixels per class, which add up over planes.

    Parameters
    ----------
    tolerance_px
        Euclidean distance, in pixels, up to which a boundary pixel counts as met.
    band_px
        Width, in pixels, of the inner bands that boundary IoU compares.
    num_truth, num_truth_met
        Boundary pixels of the truth, and those of them within the tolerance of a predicted one; one entry a class.
    num_predicted, num_predicted_met
        The same the other way round.
    num_band_intersection, num_band_union
        Pixels in both inner bands, and in either.
    """

    tolerance_px: int
    band_px: int
    num_truth: tuple[int, ...]
    num_truth_met: tuple[int, ...]
    num_predicted: tuple[int, ...]
    num_predicted_met: tuple[int, ...]
    num_band_intersection: tuple[int, ...]
    num_band_union: tuple[int, ...]

    def __add__(self, other: Self) -> Self:
        if (self.tolerance_px, self.band_px) != (other.tolerance_px, other.band_px):
            raise ValueError("boundary counts of different tolerances do not add up")
        summed_qc = np.add(astuple(self)[2:], astuple(other)[2:])
        return type(self)(self.tolerance_px, self.band_px, *map(tuple, summed_qc.tolist()))


def boundary_counts(
    truth_yx: npt.NDArray[np.integer],
    prediction_yx: npt.NDArray[np.integer],
    num_classes: int,
    *,
    tolerance_px: int,
    band_px: int | None = None,
) -> BoundaryCounts:
    """Count, for each class, the boundary pixels that truth and prediction share.

    Parameters
    ----------
    truth_yx
        (Y, X) class indices, `IGNORE_INDEX` where nobody knows; ignored pixels are in no count.
    prediction_yx
        (Y, X) class indices.
    num_classes
        The number of classes C of the table.
    tolerance_px
        Euclidean distance, in pixels, up to which a boundary pixel counts as met.
    band_px
        Width of the inner bands in pixels (chessboard distance); the tolerance, if None.

    Notes
    -----
    Boundary F1 after Csurka et al. (2013), "What is a good evaluation measure for semantic segmentation?"; boundary
    IoU after Cheng et al. (2021), "Boundary IoU: Improving object-centric image segmentation evaluation", whose own
    code counts the rim of the image as a boundary, which this does not.
    """
    band = tolerance_px if band_px is None else band_px
    known_yx = truth_yx != IGNORE_INDEX
    rows = []
    for index in range(num_classes):
        truth_depth_yx = _depth_inside(truth_yx == index, known_yx)
        predicted_depth_yx = _depth_inside(prediction_yx == index, known_yx)
        truth_nd = np.argwhere(truth_depth_yx == 1)
        predicted_nd = np.argwhere(predicted_depth_yx == 1)
        truth_band_yx = (truth_depth_yx > 0) & (truth_depth_yx <= band)
        predicted_band_yx = (predicted_depth_yx > 0) & (predicted_depth_yx <= band)
        rows.append(
            (
                len(truth_nd),
                _num_met(truth_nd, predicted_nd, tolerance_px),
                len(predicted_nd),
                _num_met(predicted_nd, truth_nd, tolerance_px),
                int(np.count_nonzero(truth_band_yx & predicted_band_yx)),
                int(np.count_nonzero(truth_band_yx | predicted_band_yx)),
            )
        )
    return BoundaryCounts(tolerance_px, band, *zip(*rows, strict=True))


def boundary_f1_per_class(counts: BoundaryCounts) -> Ratios:
    """Return boundary F1 of each class: 0 where only one side has a boundary, None where neither has.

    Precision is the met share of the predicted boundary, recall that of the true one; F1 is their harmonic mean.
    """
    values: list[float | None] = []
    for num_truth, num_truth_met, num_predicted, num_predicted_met in zip(
        counts.num_truth, counts.num_truth_met, counts.num_predicted, counts.num_predicted_met, strict=True
    ):
        if num_truth + num_predicted == 0:
            values.append(None)
        elif num_truth_met == 0 or num_predicted_met == 0:
            values.append(0.0)
        else:
            precision, recall = num_predicted_met / num_predicted, num_truth_met / num_truth
            values.append(2 * precision * recall / (precision + recall))
    return tuple(values)


def boundary_iou_per_class(counts: BoundaryCounts) -> Ratios:
    """Return boundary IoU of each class, None where neither truth nor prediction has a boundary."""
    return ratios(np.array(counts.num_band_intersection), np.array(counts.num_band_union))


def _depth_inside(mask_yx: npt.NDArray[np.bool_], known_yx: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Return how deep each known pixel of a mask lies in it: 1 at its boundary, 0 outside; −1 if it has no outside."""
    if not (mask_yx & known_yx).any():
        return np.zeros(mask_yx.shape, dtype=np.int32)
    depth_yx: npt.NDArray[np.int32] = ndimage.distance_transform_cdt(mask_yx | ~known_yx, metric="chessboard")
    depth_yx[~known_yx] = 0
    return depth_yx


def _num_met(points_nd: npt.NDArray[np.intp], others_nd: npt.NDArray[np.intp], tolerance_px: int) -> int:
    if len(points_nd) == 0 or len(others_nd) == 0:
        return 0
    # The bound is exclusive, and squared distances between pixels are whole numbers.
    bound = math.sqrt(tolerance_px**2 + 0.5)
    distance_n, _ = KDTree(others_nd).query(points_nd, distance_upper_bound=bound)
    return int(np.isfinite(distance_n).sum())
