"""What a network is shown of objects that touch: background, interiors, and the contours between and around them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from stackseg.dataset.labels.table import IGNORE_INDEX, IGNORED_OBJECT
from stackseg.model.objects import BOUNDARY, INTERIOR

CONTOUR_PIXELS = 1
"""Width of the contour within an object."""
_LAST = np.iinfo(np.uint16).max


def patch_codes(objects_yx: npt.NDArray[np.int32]) -> npt.NDArray[np.uint16]:
    """Return the objects of a patch (Y, X) in a type that OpenCV resamples, as a number each.

    0 is background and `IGNORE_INDEX` what is to be ignored, as in masks of classes: augmentation puts it where it
    draws pixels from outside. No patch holds as many objects as the type has numbers.
    """
    shifted_yx = objects_yx - IGNORED_OBJECT  # from 0
    occurs = np.zeros(int(shifted_yx.max()) + 1, np.bool_)
    occurs[shifted_yx] = True
    occurs[: 1 - IGNORED_OBJECT] = False
    numbers = np.where(occurs, np.cumsum(occurs, dtype=np.int64), 0)
    numbers[numbers >= IGNORE_INDEX] += 1
    codes_yx = numbers[shifted_yx]
    codes_yx[objects_yx == IGNORED_OBJECT] = IGNORE_INDEX
    return codes_yx.astype(np.uint16)


def instance_target(codes_yx: npt.NDArray[np.unsignedinteger], contour: int = CONTOUR_PIXELS) -> npt.NDArray[np.uint8]:
    """Return what the network has to say (Y, X): 0, `INTERIOR`, `BOUNDARY`, or `IGNORE_INDEX`.

    Boundary is what of an object lies within `contour` pixels of another object or of the background; not of ignored
    pixels and of the patch's rim, beyond which nobody knows.

    Parameters
    ----------
    codes_yx
        From `patch_codes`.
    contour
        Width in pixels.
    """
    ignored_yx = codes_yx == IGNORE_INDEX
    side = 2 * contour + 1
    square: Any = np.ones((side, side), np.uint8)
    # the largest and the smallest number around a pixel are its own where there is no other
    largest_yx = cv2.dilate(np.where(ignored_yx, 0, codes_yx).astype(np.uint16), square)
    smallest_yx = cv2.erode(np.where(ignored_yx, _LAST, codes_yx).astype(np.uint16), square)
    target_yx = np.where((largest_yx != codes_yx) | (smallest_yx != codes_yx), BOUNDARY, INTERIOR).astype(np.uint8)
    target_yx[codes_yx == 0] = 0
    target_yx[ignored_yx] = IGNORE_INDEX
    return target_yx
