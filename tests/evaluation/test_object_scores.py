"""Objects found: one to one, at an IoU above the threshold, whatever their numbers are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stackseg.dataset.labels.table import IGNORED_OBJECT
from stackseg.evaluation.bootstrap import Interval
from stackseg.evaluation.object_scores import PERCENTS, f1_at_half, object_counts, object_scores

FIELDS = arrays.arrays(np.int32, (6, 7), elements=st.integers(0, 4))
NO_INTERVAL = Interval(confidence=0.95, num_units=0, unit="plane", method="none")


def by_hand(truth_yx: Any, predicted_yx: Any) -> list[tuple[int, int, int]]:
    """Return the matches by comparing each pair of objects."""
    truths, found = ([one_yx == n for n in np.unique(one_yx) if n > 0] for one_yx in (truth_yx, predicted_yx))
    ious = [(one & other).sum() / (one | other).sum() for one in truths for other in found]
    hits_t = [sum(iou > percent / 100 + 1e-9 for iou in ious) for percent in PERCENTS]
    return [(hits, len(found) - hits, len(truths) - hits) for hits in hits_t]


@settings(max_examples=100, deadline=None)
@given(FIELDS, FIELDS)
def test_matches_are_those_of_comparing_each_pair(truth_yx: Any, predicted_yx: Any) -> None:
    # mostly alike, so that there are matches
    predicted_yx = np.where(predicted_yx > 2, predicted_yx, truth_yx)
    assert object_counts(truth_yx, predicted_yx).tolist() == [list(one) for one in by_hand(truth_yx, predicted_yx)]


@settings(max_examples=60, deadline=None)
@given(FIELDS, FIELDS, st.permutations([3, 40, 500, 60_000]))
def test_other_numbers_change_nothing(truth_yx: Any, predicted_yx: Any, numbers: list[int]) -> None:
    renumbered = np.array([0, *numbers], np.int32)
    expected = object_counts(truth_yx, predicted_yx)
    assert np.array_equal(object_counts(renumbered[truth_yx], predicted_yx), expected)
    assert np.array_equal(object_counts(truth_yx, renumbered[predicted_yx]), expected)


@settings(max_examples=40, deadline=None)
@given(st.lists(FIELDS, min_size=1, max_size=3))
def test_a_perfect_prediction_has_an_f1_of_1(truths: list[Any]) -> None:
    scores = object_scores([object_counts(one, one) for one in truths], NO_INTERVAL)
    expected = 1.0 if any(one.any() for one in truths) else None
    for found in (scores.f1, scores.ap, scores.f1_of_planes, scores.ap_of_planes):
        assert set(found.values()) == {expected}
    assert scores.mean_ap == scores.mean_ap_of_planes == (None if expected is None else pytest.approx(1))


def test_scores_of_a_field_by_hand() -> None:
    truth_yx = np.zeros((4, 40), np.int32)
    truth_yx[0, :20], truth_yx[1, :20], truth_yx[2, :20] = 1, 2, 3
    found_yx = np.zeros_like(truth_yx)
    found_yx[0, :20] = 5  # whole
    found_yx[1, :10] = 6  # IoU 0.5, which is not above it
    found_yx[2, :15] = 7  # IoU 0.75
    found_yx[3, :4] = 8  # nothing is there
    other = object_counts(truth_yx[:1], truth_yx[:1])
    counts = object_counts(truth_yx, found_yx)
    assert counts[0].tolist() == [2, 2, 1]
    assert counts[PERCENTS.index(70)].tolist() == [2, 2, 1]
    assert counts[PERCENTS.index(75)].tolist() == [1, 3, 2]
    scores = object_scores([counts, other, np.zeros_like(counts)], NO_INTERVAL)
    assert (scores.num_truth, scores.num_predicted) == (4, 5)
    assert list(scores.f1) == ["0.5", "0.55", "0.6", "0.65", "0.7", "0.75", "0.8", "0.85", "0.9", "0.95"]
    assert scores.f1["0.5"] == f1_at_half(counts + other) == pytest.approx(2 * 3 / (2 * 3 + 2 + 1))
    assert scores.ap["0.75"] == pytest.approx(2 / (2 + 3 + 2))
    assert scores.mean_ap == pytest.approx((5 * 3 / 6 + 5 * 2 / 7) / 10)
    # the empty plane has no score of its own
    assert scores.f1_of_planes["0.5"] == pytest.approx((4 / 7 + 1) / 2)
    assert scores.mean_ap_of_planes == pytest.approx(((5 * 2 / 5 + 5 * 1 / 6) / 10 + 1) / 2)


def test_where_nobody_knows_nothing_counts() -> None:
    truth_yx = np.array([[1, 1, 1, IGNORED_OBJECT, IGNORED_OBJECT, IGNORED_OBJECT, 0]], np.int32)
    found_yx = np.array([[4, 4, 4, 4, 4, 9, 0]], np.int32)
    assert object_counts(truth_yx, found_yx).tolist() == [[1, 0, 0]] * len(PERCENTS)
    unknown = np.full_like(truth_yx, IGNORED_OBJECT)
    assert not object_counts(unknown, found_yx).any()
