"""What a network is shown of objects: contours where they end, whatever their numbers are."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stackseg.dataset.labels.table import IGNORE_INDEX, IGNORED_OBJECT
from stackseg.model.objects import BOUNDARY, INTERIOR
from stackseg.training.instance_targets import instance_target, patch_codes

FIELDS = arrays.arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(-1, 4))


def by_hand(objects_yx: Any, contour: int) -> Any:
    """Return the target by looking around each pixel."""
    target_yx = np.zeros(objects_yx.shape, np.uint8)
    for (y, x), own in np.ndenumerate(objects_yx):
        near = objects_yx[max(0, y - contour) : y + contour + 1, max(0, x - contour) : x + contour + 1]
        ends = ((near != own) & (near != IGNORED_OBJECT)).any()
        target_yx[y, x] = {0: 0, IGNORED_OBJECT: IGNORE_INDEX}.get(int(own), BOUNDARY if ends else INTERIOR)
    return target_yx


@settings(max_examples=150, deadline=None)
@given(FIELDS, st.sampled_from([1, 2]))
def test_the_boundary_is_what_lies_near_another_object_or_the_background(objects_yx: Any, contour: int) -> None:
    np.testing.assert_array_equal(instance_target(patch_codes(objects_yx), contour), by_hand(objects_yx, contour))


@settings(max_examples=60, deadline=None)
@given(FIELDS, st.permutations([1, 300, 254, 255, 70_000]))
def test_other_numbers_give_the_same_target(objects_yx: Any, numbers: list[int]) -> None:
    renumbered_yx = np.array([0, *numbers, IGNORED_OBJECT], np.int32)[objects_yx]
    first, second = (instance_target(patch_codes(one)) for one in (objects_yx, renumbered_yx))
    np.testing.assert_array_equal(first, second)


def test_no_object_of_many_is_taken_for_ignored_pixels() -> None:
    objects_yx = np.arange(1000, dtype=np.int32).reshape(20, 50)
    codes_yx = patch_codes(objects_yx)
    assert codes_yx.dtype == np.uint16
    assert len(np.unique(codes_yx)) == 1000
    assert IGNORE_INDEX not in codes_yx
    assert codes_yx[0, 0] == 0
