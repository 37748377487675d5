"""Objects that touch come out as two; what is no object is dropped."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from stackseg.model.objects import BOUNDARY, INTERIOR, MIN_PIXELS, class_probabilities, find_objects
from stackseg.training.instance_targets import instance_target, patch_codes


def outputs_of(target_yx: Any, certainty: float = 0.9) -> Any:
    """Return the outputs (3, Y, X) of a network that says the target."""
    return np.where(np.arange(3)[:, None, None] == target_yx, certainty, (1 - certainty) / 2).astype(np.float32)


def found_in(objects_yx: Any) -> Any:
    """Return the objects that are found where the network says just what it was shown."""
    outputs_oyx = outputs_of(instance_target(patch_codes(objects_yx)))
    return find_objects(outputs_oyx, class_probabilities(torch.from_numpy(outputs_oyx)).argmax(0).numpy())


def same_partition(one_yx: Any, other_yx: Any) -> bool:
    pairs = np.unique(np.stack([one_yx.ravel(), other_yx.ravel()]), axis=1)
    return all(len(np.unique(side)) == pairs.shape[1] for side in pairs)


def test_touching_squares_are_two_objects_and_none_loses_a_pixel() -> None:
    objects_yx = np.zeros((30, 40), np.int32)
    objects_yx[5:15, 5:15], objects_yx[5:15, 15:25], objects_yx[15:25, 10:20] = 1, 2, 3
    assert ndimage.label(objects_yx > 0)[1] == 1
    found_yx = found_in(objects_yx)
    assert found_yx.dtype == np.int32
    assert sorted(np.unique(found_yx)) == [0, 1, 2, 3]
    for number in (1, 2, 3):
        own = np.bincount(found_yx[objects_yx == number])
        assert own.max() >= 0.9 * own.sum()  # contours go to the nearer interior
    assert np.array_equal(found_yx > 0, objects_yx > 0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=16, unique=True),
    st.integers(8, 12),
)
def test_squares_on_a_grid_come_back(cells: list[tuple[int, int]], side: int) -> None:
    objects_yx = np.zeros((4 * side + 3, 4 * side), np.int32)
    for number, (row, column) in enumerate(cells, start=1):
        objects_yx[row * side : (row + 1) * side, column * side : (column + 1) * side] = number
    found_yx = found_in(objects_yx)
    assert found_yx.max() == len(cells)
    assert np.array_equal(found_yx > 0, objects_yx > 0)
    # those that touch share out the contour between them, and only that
    sure_yx = instance_target(patch_codes(objects_yx)) != BOUNDARY
    assert same_partition(found_yx[sure_yx], objects_yx[sure_yx])


def test_a_thin_object_without_interior_is_one_and_a_speck_is_none() -> None:
    objects_yx = np.zeros((20, 30), np.int32)
    objects_yx[3:5, 2 : 2 + MIN_PIXELS] = 1  # all of it is contour
    objects_yx[12, 2:4] = 2
    target_yx = instance_target(patch_codes(objects_yx))
    assert INTERIOR not in target_yx
    found_yx = found_in(objects_yx)
    assert np.array_equal(found_yx, objects_yx == 1)


def test_a_neck_divides_where_the_network_saw_no_contour() -> None:
    y, x = np.mgrid[:40, :60]
    discs_yx = ((y - 20) ** 2 + (x - 18) ** 2 <= 144) | ((y - 20) ** 2 + (x - 40) ** 2 <= 144)
    outputs_oyx = outputs_of(np.where(discs_yx, INTERIOR, 0))
    assert ndimage.label(discs_yx)[1] == 1
    found_yx = find_objects(outputs_oyx, discs_yx)
    assert found_yx.max() == 2
    assert np.array_equal(np.bincount(found_yx[20, 6:53]).astype(bool), [False, True, True])
    assert abs(int((found_yx == 1).sum()) - int((found_yx == 2).sum())) <= 12
    # the neck is 10 pixels wide, the discs 25
    assert find_objects(outputs_oyx, discs_yx, neck=0.9).max() == 1


def test_a_small_basin_belongs_to_its_neighbour() -> None:
    objects_yx = np.zeros((20, 30), np.int32)
    objects_yx[4:16, 4:16], objects_yx[7:13, 16:22] = 1, 2
    outputs_oyx = outputs_of(instance_target(patch_codes(objects_yx)))
    assert find_objects(outputs_oyx, objects_yx).max() == 2
    joined_yx = find_objects(outputs_oyx, objects_yx, min_pixels=40)
    assert np.array_equal(joined_yx, (objects_yx > 0).astype(np.int32))


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(np.float32, (3, 9, 11), elements=st.floats(0, 8, width=32)))
def test_objects_lie_in_the_mask_and_are_numbered_without_gaps(logits_oyx: Any) -> None:
    odds_oyx = np.exp(logits_oyx)
    outputs_oyx = odds_oyx / odds_oyx.sum(0)
    classes_cyx = class_probabilities(torch.from_numpy(outputs_oyx)).numpy()
    np.testing.assert_allclose(classes_cyx.sum(0), 1, rtol=1e-5)
    found_yx = find_objects(outputs_oyx, classes_cyx.argmax(0))
    assert not found_yx[classes_cyx.argmax(0) == 0].any()
    assert np.unique(np.append(0, found_yx)).tolist() == list(range(found_yx.max() + 1))
    for number in range(1, found_yx.max() + 1):
        assert ndimage.label(found_yx == number)[1] == 1


def test_nothing_is_found_in_nothing() -> None:
    outputs_oyx = outputs_of(np.zeros((5, 5), np.uint8))
    assert not find_objects(outputs_oyx, np.zeros((5, 5), np.uint8)).any()
