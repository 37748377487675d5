from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.metrics import adapted_rand_error, variation_of_information

from stackseg.dataset.labels.table import IGNORE_INDEX
from stackseg.evaluation.rand_vi import mean_rand_vi, rand_vi_score

MEMBRANE = 1
SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


def cells(walls_x: list[int], *, width: int = 1, shape: tuple[int, int] = (20, 41)) -> np.ndarray:
    """A plane of upright membranes, centred on the given columns."""
    plane_yx = np.zeros(shape, dtype=np.uint8)
    for x in walls_x:
        plane_yx[:, x - width // 2 : x + width // 2 + 1] = MEMBRANE
    return plane_yx


def test_identical_planes_score_one() -> None:
    truth_yx = cells([10, 25])
    score = rand_vi_score(truth_yx, truth_yx, MEMBRANE)
    assert score.v_rand == 1.0
    assert score.v_info == pytest.approx(1.0, abs=1e-12)
    assert (score.num_truth_segments, score.num_predicted_segments, score.num_pixels) == (3, 3, 20 * 39)


def test_a_merger_by_hand() -> None:
    # Two cells of 20 columns each come out as one.
    score = rand_vi_score(cells([20]), cells([]), MEMBRANE)
    assert score.v_rand == pytest.approx((0.25 + 0.25) / (0.5 * 1 + 0.5 * 0.5))
    assert score.v_info == 0.0


def test_a_split_by_hand() -> None:
    # One cell of 41 columns comes out as two of 20, and 20 pixels of thinned membrane stand alone.
    score = rand_vi_score(cells([]), cells([20], width=5), MEMBRANE)
    num_pixels = 20 * 41
    squares = (2 * 400**2 + 20) / num_pixels**2
    assert score.v_rand == pytest.approx(squares / (0.5 * squares + 0.5 * 1))
    assert score.v_info == 0.0


def test_v_info_by_hand() -> None:
    # Of four cells (10, 9, 10, 9 columns) the inner wall is missing: halves are told apart, quarters are not.
    truth_yx = cells([10, 20, 31])
    sizes = np.array([10, 9, 10, 9]) / 38
    merged = np.array([10, 9 + 10, 9]) / 38
    entropy_t, entropy_s = (-(shares * np.log(shares)).sum() for shares in (sizes, merged))
    # The prediction is a function of the truth, so they share all that it says; the missing wall is not counted.
    score = rand_vi_score(truth_yx, cells([10, 31]), MEMBRANE)
    assert score.v_info == pytest.approx(entropy_s / (0.5 * entropy_s + 0.5 * entropy_t))


def test_the_drawn_width_of_membranes_does_not_matter() -> None:
    truth_yx = cells([10, 25])
    wide = rand_vi_score(truth_yx, cells([10, 25], width=7), MEMBRANE)
    assert (wide.v_rand, wide.v_info) == (1.0, pytest.approx(1.0, abs=1e-12))


def test_a_membrane_that_parts_nothing_does_not_matter() -> None:
    truth_yx = cells([20])
    prediction_yx = truth_yx.copy()
    prediction_yx[5:15, 8] = MEMBRANE
    assert rand_vi_score(truth_yx, prediction_yx, MEMBRANE).v_rand == 1.0


def test_a_gap_of_one_pixel_merges() -> None:
    truth_yx = cells([20])
    prediction_yx = truth_yx.copy()
    prediction_yx[7, 20] = 0
    score = rand_vi_score(truth_yx, prediction_yx, MEMBRANE)
    assert score == rand_vi_score(truth_yx, cells([]), MEMBRANE)


def test_cells_that_touch_at_corners_only_are_apart() -> None:
    plane_yx = np.eye(9, dtype=np.uint8)
    assert rand_vi_score(plane_yx, plane_yx, MEMBRANE).num_truth_segments == 2


def test_any_class_can_be_the_membrane_and_the_others_are_cell() -> None:
    truth_yx, prediction_yx = cells([10, 25]), cells([10])
    turned = rand_vi_score(1 - truth_yx, 1 - prediction_yx, 0)
    assert turned == rand_vi_score(truth_yx, prediction_yx, MEMBRANE)
    organelle_yx = prediction_yx.copy()
    organelle_yx[3:6, 3:6] = 2
    assert rand_vi_score(truth_yx, organelle_yx, MEMBRANE) == rand_vi_score(truth_yx, prediction_yx, MEMBRANE)


def test_ignored_pixels_are_left_out() -> None:
    truth_yx, prediction_yx = cells([10, 25]), cells([10])
    truth_yx[:, 20:] = IGNORE_INDEX
    score = rand_vi_score(truth_yx, prediction_yx, MEMBRANE)
    assert (score.v_rand, score.num_pixels) == (1.0, 20 * 19)
    # Cells end at ignored pixels on both sides alike.
    band_yx = cells([])
    band_yx[:, 15:20] = IGNORE_INDEX
    assert rand_vi_score(band_yx, cells([]), MEMBRANE).v_rand == 1.0
    # No predicted cell reaches the right side, and none floods it across the ignored band.
    all_membrane_right_yx = cells([])
    all_membrane_right_yx[:, 15:] = MEMBRANE
    sizes = np.array([15, 21]) * 20
    squares = sizes[0] ** 2 + sizes[1]
    expected = squares / (0.5 * squares + 0.5 * (sizes**2).sum())
    assert rand_vi_score(band_yx, all_membrane_right_yx, MEMBRANE).v_rand == pytest.approx(expected)


def test_null_where_undefined() -> None:
    all_membrane_yx = np.full((6, 6), MEMBRANE, dtype=np.uint8)
    no_cell = rand_vi_score(all_membrane_yx, np.zeros_like(all_membrane_yx), MEMBRANE)
    assert (no_cell.v_rand, no_cell.v_info, no_cell.num_truth_segments) == (None, None, 0)
    one_cell = rand_vi_score(cells([]), cells([]), MEMBRANE)
    assert (one_cell.v_rand, one_cell.v_info) == (1.0, None)
    no_predicted_cell = rand_vi_score(cells([20]), np.full((20, 41), MEMBRANE, dtype=np.uint8), MEMBRANE)
    assert no_predicted_cell.v_rand == pytest.approx((1 / 800) / (0.5 / 800 + 0.5 * 0.5))
    mean = mean_rand_vi([no_cell, one_cell, rand_vi_score(cells([20]), cells([]), MEMBRANE)])
    assert (mean.v_rand, mean.num_planes_v_rand) == (pytest.approx((1 + 2 / 3) / 2), 2)
    assert (mean.v_info, mean.num_planes_v_info) == (0.0, 1)
    assert mean_rand_vi([no_cell]).v_rand is None


def random_membranes(seed: int) -> np.ndarray:
    """Membranes that enclose irregular cells."""
    rng = np.random.default_rng(seed)
    smooth_yx = ndimage.gaussian_filter(rng.normal(size=(40, 44)), 3, mode="nearest")
    return (np.abs(smooth_yx) < 0.025).astype(np.uint8)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_scores_stay_in_range_and_do_not_depend_on_the_numbering_of_segments(seed: int, other_seed: int) -> None:
    truth_yx, prediction_yx = random_membranes(seed), random_membranes(other_seed)
    score = rand_vi_score(truth_yx, prediction_yx, MEMBRANE)
    assert score.v_rand is not None
    assert 0 < score.v_rand <= 1
    assert score.v_info is None or 0 <= score.v_info <= 1
    # Turning the plane renumbers the segments; only ties of the thinned line may fall otherwise.
    turned = rand_vi_score(np.rot90(truth_yx, 2), np.rot90(prediction_yx, 2), MEMBRANE)
    assert turned.v_rand == pytest.approx(score.v_rand, abs=0.03)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_agrees_with_scikit_image_where_its_convention_is_the_same(seed: int) -> None:
    """Upright walls in the prediction at true walls leave no pixel alone, and pairs of a pixel with itself are few."""
    rng = np.random.default_rng(seed)
    walls_x = np.arange(6, 100, 9)
    truth_yx = cells(walls_x.tolist(), shape=(30, 103))
    prediction_yx = cells(walls_x[rng.random(len(walls_x)) < 0.6].tolist(), shape=(30, 103))
    truth_segments_yx, _ = ndimage.label(truth_yx != MEMBRANE)
    predicted_segments_yx, _ = ndimage.label(prediction_yx != MEMBRANE)
    score = rand_vi_score(truth_yx, prediction_yx, MEMBRANE)
    error, _, _ = adapted_rand_error(truth_segments_yx, predicted_segments_yx)
    assert score.v_rand == pytest.approx(1 - error, abs=5e-3)
    split, merge = variation_of_information(truth_segments_yx, predicted_segments_yx, ignore_labels=(0,))
    shares = np.bincount(truth_segments_yx[truth_segments_yx > 0]) / (truth_segments_yx > 0).sum()
    entropy_t = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum()
    shared = entropy_t - merge
    assert score.v_info == pytest.approx(2 * shared / (entropy_t + shared + split), abs=1e-9)


@pytest.mark.skipif(not (SHARED_DATA / "isbi2012").is_dir(), reason="needs ../shared/data/isbi2012")
def test_on_a_real_micrograph_wider_membranes_cost_little_and_lost_ones_much() -> None:
    truth_yx = (tifffile.imread(SHARED_DATA / "isbi2012" / "masks.tif", key=0) > 0).astype(np.uint8)
    same = rand_vi_score(truth_yx, truth_yx, MEMBRANE)
    assert (same.v_rand, same.v_info) == (1.0, pytest.approx(1.0, abs=1e-12))
    wider_yx = ndimage.binary_dilation(truth_yx).astype(np.uint8)
    wider = rand_vi_score(truth_yx, wider_yx, MEMBRANE)
    assert wider.v_rand is not None
    assert wider.v_rand > 0.95
    lost_yx = truth_yx.copy()
    lost_yx[::16] = 0
    lost = rand_vi_score(truth_yx, lost_yx, MEMBRANE)
    assert lost.v_rand is not None
    assert lost.v_rand < 0.5
