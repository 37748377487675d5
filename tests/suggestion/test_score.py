"""The entropy of a plane is the mean over its classes of the mean over their pixels."""

from __future__ import annotations

import numpy as np
import pytest

from stackseg.model.segment import SegmentedPlane
from stackseg.suggestion.score import PlaneScore, foreground, score_plane


def test_a_rare_class_counts_as_a_frequent_one() -> None:
    mask_yx = np.zeros((4, 5), np.uint8)
    mask_yx[0, :2] = 2
    probabilities_cyx = np.zeros((3, 4, 5), np.float32)
    probabilities_cyx[0] = 1
    probabilities_cyx[:, 0, 0] = (0, 0.5, 0.5)
    probabilities_cyx[:, 0, 1] = 1 / 3
    score, entropy_yx = score_plane(SegmentedPlane(0, mask_yx, probabilities_cyx), 3)
    half = np.log(2) / np.log(3)
    assert entropy_yx[0, 0] == pytest.approx(half)
    assert score.entropy_of_class == pytest.approx((0, None, (half + 1) / 2))
    assert score.shares == pytest.approx((0.9, 0, 0.1))
    assert score.uncertainty == pytest.approx((half + 1) / 4)


def test_foreground_is_all_but_the_class_that_is_most_frequent_over_all_planes() -> None:
    planes = [PlaneScore((0.1, 0.1), shares) for shares in ((0.1, 0.9), (0.8, 0.2), (0.9, 0.1))]
    assert foreground(planes) == pytest.approx([0.9, 0.2, 0.1])
