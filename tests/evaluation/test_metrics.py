from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import jaccard_score, precision_score, recall_score

from stackseg.evaluation.boundary_metrics import boundary_counts
from stackseg.evaluation.metrics import (
    Scores,
    frequency_weighted_iou,
    plane_score,
    precision_per_class,
    recall_per_class,
    scores_from,
)
from stackseg.model.confusion import confusion_counts

NAMES = ("pore", "clay", "quartz")


def test_an_absent_class_is_null_and_reported() -> None:
    truth_yx = np.array([[0, 0, 0, 2], [0, 0, 2, 2]], dtype=np.uint8)
    prediction_yx = np.array([[0, 0, 2, 2], [0, 0, 2, 2]], dtype=np.uint8)
    counts_cc = confusion_counts(truth_yx, prediction_yx, 3)
    boundary = boundary_counts(truth_yx, prediction_yx, 3, tolerance_px=1, band_px=2)
    scores = scores_from(counts_cc, NAMES, num_planes=1, boundary=boundary)
    assert scores.absent_classes == ("clay",)
    clay = scores.classes[1]
    assert clay.absent
    ratios = (clay.iou, clay.dice, clay.precision, clay.recall, clay.boundary_f1, clay.boundary_iou)
    assert ratios == (None,) * 6
    assert (clay.num_truth_pixels, clay.num_predicted_pixels) == (0, 0)
    assert scores.mean_iou == pytest.approx((4 / 5 + 3 / 4) / 2)
    assert scores.mean_dice == pytest.approx((8 / 9 + 6 / 7) / 2)
    assert scores.pixel_accuracy == 7 / 8
    assert scores.frequency_weighted_iou == pytest.approx(5 / 8 * 4 / 5 + 3 / 8 * 3 / 4)
    assert (scores.boundary_tolerance_px, scores.boundary_band_px) == (1, 2)
    assert scores.confusion == ((4, 0, 1), (0, 0, 0), (0, 0, 3))
    assert scores.classes[2].boundary_f1 == 1.0


def test_scores_are_plain_json_and_come_back() -> None:
    counts_cc = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    scores = scores_from(counts_cc, NAMES, num_planes=2)
    text = json.dumps(scores.model_dump(mode="json"), allow_nan=False)
    assert json.loads(text)["classes"][2]["iou"] is None
    assert Scores.model_validate_json(text) == scores


def test_scores_of_nothing_are_null() -> None:
    scores = scores_from(np.zeros((3, 3), dtype=np.int64), NAMES, num_planes=0)
    assert scores.absent_classes == NAMES
    means = (scores.mean_iou, scores.mean_dice, scores.pixel_accuracy, scores.frequency_weighted_iou)
    assert means == (None,) * 4


def test_precision_and_recall_are_null_without_a_denominator() -> None:
    # class 0 is only in the truth, class 1 in both, class 2 only predicted
    counts_cc = np.array([[0, 2, 1], [0, 3, 0], [0, 0, 0]])
    assert precision_per_class(counts_cc) == (None, 3 / 5, 0.0)
    assert recall_per_class(counts_cc) == (0.0, 1.0, None)
    scores = scores_from(counts_cc, NAMES, num_planes=1)
    assert scores.absent_classes == ()
    assert [score.iou for score in scores.classes] == [0.0, 3 / 5, 0.0]


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(np.uint8, (2, 7, 6), elements=st.integers(0, 3)))
def test_agrees_with_scikit_learn(masks_byx: np.ndarray) -> None:
    truth, prediction = masks_byx[0].ravel(), masks_byx[1].ravel()
    counts_cc = confusion_counts(truth, prediction, 4)
    expected = jaccard_score(truth, prediction, average="weighted", zero_division=0)
    assert frequency_weighted_iou(counts_cc) == pytest.approx(expected, abs=1e-12)
    for ours, theirs in ((precision_per_class, precision_score), (recall_per_class, recall_score)):
        expected = theirs(truth, prediction, labels=range(4), average=None, zero_division=np.nan)
        got = [np.nan if value is None else value for value in ours(counts_cc)]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_a_row_of_the_plane_table() -> None:
    row = plane_score("core-1", 7, np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]), NAMES)
    assert row.model_dump(mode="json") == {
        "specimen": "core-1",
        "plane": 7,
        "mean_iou": pytest.approx((3 / 4 + 2 / 3) / 2),
        "pixel_accuracy": 5 / 6,
        "num_pixels": 6,
        "iou": {"pore": 3 / 4, "clay": 2 / 3, "quartz": None},
    }
