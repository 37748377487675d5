from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.spatial.distance import cdist

from stackseg.dataset.labels.table import IGNORE_INDEX
from stackseg.evaluation.boundary_metrics import boundary_counts, boundary_f1_per_class, boundary_iou_per_class

masks = hnp.arrays(np.uint8, (2, 12, 10), elements=st.integers(0, 2))


def disc(centre: tuple[float, float], radius: float = 8, size: int = 48) -> np.ndarray:
    y, x = np.ogrid[:size, :size]
    return ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2).astype(np.uint8)


def test_counts_by_hand() -> None:
    truth_yx = np.zeros((7, 9), dtype=np.uint8)
    truth_yx[2:5, 2:5] = 1
    prediction_yx = np.zeros_like(truth_yx)
    prediction_yx[2:5, 4:7] = 1
    counts = boundary_counts(truth_yx, prediction_yx, 2, tolerance_px=1)
    # The rim of a 3 × 3 square has 8 pixels; columns 4 (shared), 3 and 5 (one off) lie within one pixel of the other.
    assert (counts.num_truth[1], counts.num_predicted[1]) == (8, 8)
    assert (counts.num_truth_met[1], counts.num_predicted_met[1]) == (5, 5)
    assert boundary_f1_per_class(counts)[1] == 5 / 8
    assert (counts.num_band_intersection[1], counts.num_band_union[1]) == (3, 13)
    assert boundary_iou_per_class(counts)[1] == 3 / 13


@settings(deadline=None, max_examples=30)
@given(masks, st.integers(0, 4))
def test_a_perfect_prediction_scores_one_or_null(masks_byx: np.ndarray, tolerance_px: int) -> None:
    truth_yx = masks_byx[0]
    counts = boundary_counts(truth_yx, truth_yx, 3, tolerance_px=tolerance_px, band_px=2)
    several = len(np.unique(truth_yx)) > 1
    expected = tuple(1.0 if several and (truth_yx == index).any() else None for index in range(3))
    assert boundary_f1_per_class(counts) == expected
    assert boundary_iou_per_class(counts) == expected


@pytest.mark.parametrize("shift", [(3, 0), (0, -3), (2, 2), (-1, 2)])
def test_a_shift_within_the_tolerance_is_forgiven_and_no_more(shift: tuple[int, int]) -> None:
    truth_yx = disc((24, 24))
    prediction_yx = disc((24 + shift[0], 24 + shift[1]))
    within = int(np.ceil(np.hypot(*shift)))
    forgiven = boundary_counts(truth_yx, prediction_yx, 2, tolerance_px=within)
    assert boundary_f1_per_class(forgiven) == (1.0, 1.0)
    strict = boundary_counts(truth_yx, prediction_yx, 2, tolerance_px=within - 1)
    assert all(0 < value < 1 for value in boundary_f1_per_class(strict))
    assert all(0 < value < 1 for value in boundary_iou_per_class(forgiven))


def test_the_rim_of_the_image_is_no_boundary() -> None:
    truth_yx = np.zeros((20, 20), dtype=np.uint8)
    truth_yx[:, 10:] = 1
    counts = boundary_counts(truth_yx, truth_yx, 2, tolerance_px=1, band_px=3)
    assert counts.num_truth == (20, 20)
    assert counts.num_band_union == (60, 60)


def test_a_class_without_a_boundary_is_null_and_one_on_one_side_is_zero() -> None:
    whole_yx = np.zeros((8, 8), dtype=np.uint8)
    spot_yx = whole_yx.copy()
    spot_yx[3:5, 3:5] = 1
    alike = boundary_counts(whole_yx, whole_yx, 3, tolerance_px=1)
    assert boundary_f1_per_class(alike) == (None, None, None)
    assert boundary_iou_per_class(alike) == (None, None, None)
    for truth_yx, prediction_yx in ((whole_yx, spot_yx), (spot_yx, whole_yx)):
        counts = boundary_counts(truth_yx, prediction_yx, 3, tolerance_px=1)
        assert boundary_f1_per_class(counts) == (0.0, 0.0, None)
        assert boundary_iou_per_class(counts) == (0.0, 0.0, None)


def test_ignored_pixels_hold_and_make_no_boundary() -> None:
    truth_yx = disc((24, 24))
    prediction_yx = disc((24, 24))
    truth_yx[:, 30:] = IGNORE_INDEX
    prediction_yx[:, 30:] = 1 - prediction_yx[:, 30:]
    counts = boundary_counts(truth_yx, prediction_yx, 2, tolerance_px=0, band_px=2)
    assert boundary_f1_per_class(counts) == (1.0, 1.0)
    assert boundary_iou_per_class(counts) == (1.0, 1.0)
    whole = boundary_counts(disc((24, 24)), disc((24, 24)), 2, tolerance_px=0, band_px=2)
    assert counts.num_truth[1] < whole.num_truth[1]
    half_known_yx = np.where(np.arange(48) < 24, 1, IGNORE_INDEX).astype(np.uint8) * np.ones((48, 1), dtype=np.uint8)
    assert boundary_counts(half_known_yx, np.ones_like(half_known_yx), 2, tolerance_px=1).num_truth == (0, 0)
    ignored_everywhere_yx = np.full_like(truth_yx, IGNORE_INDEX)
    nothing = boundary_counts(ignored_everywhere_yx, prediction_yx, 2, tolerance_px=1)
    assert boundary_f1_per_class(nothing) == (None, None)


@settings(deadline=None, max_examples=25)
@given(masks, st.integers(0, 3), st.integers(1, 4))
def test_agrees_with_plain_definitions(masks_byx: np.ndarray, tolerance_px: int, band_px: int) -> None:
    truth_yx, prediction_yx = masks_byx
    counts = boundary_counts(truth_yx, prediction_yx, 3, tolerance_px=tolerance_px, band_px=band_px)
    for index in range(3):
        edges, bands = [], []
        for mask_yx in (truth_yx == index, prediction_yx == index):

            def eroded(times: int, mask_yx: np.ndarray = mask_yx) -> np.ndarray:
                return ndimage.binary_erosion(mask_yx, np.ones((3, 3)), iterations=times, border_value=1)

            edges.append(np.argwhere(mask_yx & ~eroded(1)))
            bands.append(mask_yx & ~eroded(band_px))
        assert counts.num_truth[index] == len(edges[0])
        assert counts.num_predicted[index] == len(edges[1])
        near = cdist(*edges) <= tolerance_px + 1e-9
        assert counts.num_truth_met[index] == near.any(axis=1).sum()
        assert counts.num_predicted_met[index] == near.any(axis=0).sum()
        assert counts.num_band_intersection[index] == (bands[0] & bands[1]).sum()
        assert counts.num_band_union[index] == (bands[0] | bands[1]).sum()


@settings(deadline=None, max_examples=20)
@given(masks, masks)
def test_planes_add_up_and_swapping_sides_changes_no_ratio(first_byx: np.ndarray, second_byx: np.ndarray) -> None:
    first = boundary_counts(*first_byx, 3, tolerance_px=1)
    second = boundary_counts(*second_byx, 3, tolerance_px=1)
    both = first + second
    assert both.num_truth == tuple(np.add(first.num_truth, second.num_truth).tolist())
    assert both.num_band_union == tuple(np.add(first.num_band_union, second.num_band_union).tolist())
    assert both == second + first
    swapped = boundary_counts(*first_byx[::-1], 3, tolerance_px=1)
    assert boundary_f1_per_class(swapped) == pytest.approx(boundary_f1_per_class(first))
    assert boundary_iou_per_class(swapped) == boundary_iou_per_class(first)


def test_counts_of_different_tolerances_do_not_add_up() -> None:
    plane_yx = disc((24, 24))
    one, two = (boundary_counts(plane_yx, plane_yx, 2, tolerance_px=tolerance_px) for tolerance_px in (1, 2))
    with pytest.raises(ValueError, match="tolerances"):
        one + two
