"""Small pieces and holes, against values worked out by hand and against scikit-image and SciPy on two classes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from skimage.morphology import remove_small_objects

from stackseg.prediction.cleaning import absorb_small, drop_small, fill_holes

binary = arrays(np.uint8, st.tuples(st.integers(2, 9), st.integers(2, 9)), elements=st.integers(0, 1))


def picture(text: str) -> np.ndarray:
    return np.array([[int(sign) for sign in row] for row in text.split()], np.uint8)


def test_a_small_piece_takes_the_class_that_it_shares_most_sides_with() -> None:
    mask_yx = picture("11110 11210 11100 00000 30000")
    cleaned_yx = absorb_small(mask_yx, 2)
    assert cleaned_yx.dtype == np.uint8
    np.testing.assert_array_equal(cleaned_yx, picture("11110 11110 11100 00000 00000"))
    np.testing.assert_array_equal(absorb_small(mask_yx, 1), mask_yx)


def test_small_pieces_that_touch_are_taken_out_together() -> None:
    # one by one, each would take the other's class
    np.testing.assert_array_equal(absorb_small(picture("0000 0230 0000"), 3), np.zeros((3, 4)))


def test_diagonal_neighbours_are_two_pieces_and_the_first_class_is_never_small() -> None:
    np.testing.assert_array_equal(absorb_small(picture("2000 0200 0000"), 2), np.zeros((3, 4)))
    np.testing.assert_array_equal(absorb_small(picture("111 101 111"), 5), picture("111 101 111"))


def test_what_has_nothing_around_it_stays() -> None:
    np.testing.assert_array_equal(absorb_small(picture("11 22"), 9), picture("11 22"))


@given(binary, st.integers(1, 8))
def test_two_classes_are_cleaned_as_scikit_image_does_it(mask_yx: np.ndarray, min_pixels: int) -> None:
    if mask_yx.any() and not mask_yx.all():
        expected_yx = remove_small_objects(mask_yx.astype(bool), max_size=min_pixels - 1)
        np.testing.assert_array_equal(absorb_small(mask_yx, min_pixels), expected_yx)


@given(binary)
def test_holes_of_two_classes_are_filled_as_scipy_does_it(mask_yx: np.ndarray) -> None:
    np.testing.assert_array_equal(fill_holes(mask_yx), ndimage.binary_fill_holes(mask_yx))


def test_a_hole_lies_in_one_class_and_not_at_the_edge() -> None:
    mask_yx = picture("11110222 10110202 11110212 11100222")
    np.testing.assert_array_equal(fill_holes(mask_yx), picture("11110222 11110202 11110212 11100222"))
    numbers_yx = mask_yx.astype(np.int32) * 70000
    assert fill_holes(numbers_yx).dtype == np.int32
    assert fill_holes(numbers_yx)[1, 1] == 70000


def test_objects_that_stay_are_numbered_anew() -> None:
    objects_yx = picture("1103 0003 2203 2200").astype(np.int32)
    np.testing.assert_array_equal(drop_small(objects_yx, 3), picture("0002 0002 1102 1100"))
    assert drop_small(objects_yx, 9).max() == 0
