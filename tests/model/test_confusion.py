from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, jaccard_score

from stackseg.dataset.labels.table import IGNORE_INDEX
from stackseg.errors import DataError
from stackseg.model.confusion import (
    confusion_counts,
    count_as_first,
    dice_per_class,
    iou_per_class,
    mean_iou,
    mean_of_present,
    pixel_accuracy,
)


@st.composite
def masks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Truth with ignored pixels, prediction, and the number of classes; some classes are often absent."""
    num_classes = draw(st.integers(2, 6))
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    used = rng.choice(num_classes, size=rng.integers(1, num_classes + 1), replace=False)
    truth_yx = rng.choice(used, size=shape).astype(np.uint8)
    truth_yx[rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = IGNORE_INDEX
    return truth_yx, rng.choice(used, size=shape).astype(np.uint8), num_classes


def test_counts_by_hand() -> None:
    truth_yx = np.array([[0, 0, 1], [2, 2, IGNORE_INDEX]], dtype=np.uint8)
    prediction_yx = np.array([[0, 1, 1], [2, 0, 2]], dtype=np.uint8)
    counts_cc = confusion_counts(truth_yx, prediction_yx, 4)
    assert counts_cc.dtype == np.int64
    assert counts_cc.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert iou_per_class(counts_cc) == (1 / 3, 1 / 2, 1 / 2, None)
    assert dice_per_class(counts_cc) == (1 / 2, 2 / 3, 2 / 3, None)
    assert mean_iou(counts_cc) == pytest.approx(4 / 9)
    assert pixel_accuracy(counts_cc) == 3 / 5


def test_nothing_to_score_gives_none() -> None:
    all_ignored_yx = np.full((3, 4), IGNORE_INDEX, dtype=np.uint8)
    counts_cc = confusion_counts(all_ignored_yx, np.zeros((3, 4), np.uint8), 2)
    assert counts_cc.sum() == 0
    assert iou_per_class(counts_cc) == (None, None)
    assert mean_iou(counts_cc) is None
    assert pixel_accuracy(counts_cc) is None
    assert mean_of_present([]) is None


def test_a_class_only_predicted_scores_zero_and_counts_in_the_mean() -> None:
    counts_cc = confusion_counts(np.array([0, 0], np.uint8), np.array([0, 1], np.uint8), 3)
    assert iou_per_class(counts_cc) == (0.5, 0.0, None)
    assert mean_iou(counts_cc) == 0.25


@settings(deadline=None, max_examples=60)
@given(masks())
def test_agrees_with_scikit_learn(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    truth_yx, prediction_yx, num_classes = case
    counts_cc = confusion_counts(truth_yx, prediction_yx, num_classes)
    known = truth_yx != IGNORE_INDEX
    truth, prediction = truth_yx[known], prediction_yx[known]
    present = sorted(set(truth.tolist()) | set(prediction.tolist()))
    ious = iou_per_class(counts_cc)
    assert [index for index, iou in enumerate(ious) if iou is not None] == present
    if not present:
        return
    expected = jaccard_score(truth, prediction, labels=present, average=None, zero_division=0)
    np.testing.assert_allclose([ious[index] for index in present], expected, rtol=0, atol=1e-12)
    assert mean_iou(counts_cc) == pytest.approx(expected.mean(), abs=1e-12)
    dices = dice_per_class(counts_cc)
    expected = f1_score(truth, prediction, labels=present, average=None, zero_division=0)
    np.testing.assert_allclose([dices[index] for index in present], expected, rtol=0, atol=1e-12)
    assert pixel_accuracy(counts_cc) == pytest.approx(accuracy_score(truth, prediction), abs=1e-12)


@pytest.mark.filterwarnings("ignore")  # warnings of torch and torchmetrics at import are not ours
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_torchmetrics(seed: int) -> None:
    import torch
    from torchmetrics.functional.classification import multiclass_jaccard_index

    rng = np.random.default_rng(seed)
    num_classes = 5
    truth_yx = rng.choice([0, 1, 2, IGNORE_INDEX], size=(40, 50)).astype(np.uint8)
    prediction_yx = rng.integers(0, 4, size=(40, 50)).astype(np.uint8)
    counts_cc = confusion_counts(truth_yx, prediction_yx, num_classes)
    truth, prediction = torch.from_numpy(truth_yx).long(), torch.from_numpy(prediction_yx).long()
    per_class = multiclass_jaccard_index(prediction, truth, num_classes, average="none", ignore_index=IGNORE_INDEX)
    ious = iou_per_class(counts_cc)
    assert ious[4] is None
    np.testing.assert_allclose(ious[:4], per_class[:4].numpy(), rtol=0, atol=1e-6)
    macro = multiclass_jaccard_index(prediction, truth, num_classes, average="macro", ignore_index=IGNORE_INDEX)
    assert mean_iou(counts_cc) == pytest.approx(float(macro), abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(masks(), st.data())
def test_counts_of_parts_sum_to_the_whole(case: tuple[np.ndarray, np.ndarray, int], data: st.DataObject) -> None:
    truth_yx, prediction_yx, num_classes = case
    cut = data.draw(st.integers(0, truth_yx.shape[0]))
    parts = [confusion_counts(truth_yx[at], prediction_yx[at], num_classes) for at in (np.s_[:cut], np.s_[cut:])]
    np.testing.assert_array_equal(sum(parts), confusion_counts(truth_yx, prediction_yx, num_classes))


@settings(deadline=None, max_examples=40)
@given(masks(), st.data())
def test_renaming_the_classes_permutes_the_scores(
    case: tuple[np.ndarray, np.ndarray, int], data: st.DataObject
) -> None:
    truth_yx, prediction_yx, num_classes = case
    new_of_old = data.draw(st.permutations(range(num_classes)))
    table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    table[:num_classes] = new_of_old
    before = iou_per_class(confusion_counts(truth_yx, prediction_yx, num_classes))
    after = iou_per_class(confusion_counts(table[truth_yx], table[prediction_yx], num_classes))
    assert before == tuple(after[new_of_old[index]] for index in range(num_classes))


@settings(deadline=None, max_examples=40)
@given(masks())
def test_what_is_predicted_on_ignored_pixels_does_not_matter(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    truth_yx, prediction_yx, num_classes = case
    other_yx = np.where(truth_yx == IGNORE_INDEX, (prediction_yx + 1) % num_classes, prediction_yx)
    np.testing.assert_array_equal(
        confusion_counts(truth_yx, prediction_yx, num_classes), confusion_counts(truth_yx, other_yx, num_classes)
    )


@pytest.mark.parametrize(
    ("truth", "prediction", "complaint"),
    [
        ([0, 1], [0, 2], "prediction holds the value 2"),
        ([IGNORE_INDEX, 1], [IGNORE_INDEX, 1], "prediction holds the value 255"),
        ([0, 1], [-1, 1], "prediction holds the value -1"),
        ([0, 7], [0, 1], "truth holds the value 7"),
        ([0, 1, 1], [0, 1], "shape"),
    ],
)
def test_values_that_are_no_class_are_refused(truth: list[int], prediction: list[int], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        confusion_counts(np.array(truth), np.array(prediction), 2)


def test_predictions_of_some_classes_count_as_the_first() -> None:
    prediction_yx = np.array([[0, 1, 2, 3]], np.uint8)
    assert count_as_first(prediction_yx, ()) is prediction_yx
    found_yx = count_as_first(prediction_yx, (1, 3))
    assert (found_yx.tolist(), found_yx.dtype) == ([[0, 0, 2, 0]], np.uint8)
    assert prediction_yx.tolist() == [[0, 1, 2, 3]]
