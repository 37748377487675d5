"""Small pieces and holes of a mask, plane by plane; pixels belong together where they share a side."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Label = TypeVar("Label", bound=np.integer)


def absorb_small(mask_yx: npt.NDArray[np.uint8], min_pixels: int) -> npt.NDArray[np.uint8]:
    """Return a mask (Y, X) whose small pieces have the class around them.

    Pieces of any class but the first that have fewer than `min_pixels` are taken out together; each gap takes the class
    with which it shares most pixel sides, the lower one of two. What has nothing around it stays.
    """
    small_yx = np.zeros(mask_yx.shape, bool)
    for value in np.unique(mask_yx[mask_yx > 0]):
        pieces_yx, _ = ndimage.label(mask_yx == value)
        is_small = np.bincount(pieces_yx.ravel()) < min_pixels
        is_small[0] = False
        small_yx |= is_small[pieces_yx]
    gaps_yx, num_gaps = ndimage.label(small_yx)
    gaps, values, sides = _surroundings(gaps_yx, mask_yx)
    order = np.lexsort((values, -sides, gaps))
    first = order[np.unique(gaps[order], return_index=True)[1]]
    new = np.full(num_gaps + 1, -1)
    new[gaps[first]] = values[first]
    return np.where(new[gaps_yx] >= 0, new[gaps_yx], mask_yx).astype(np.uint8)


def drop_small(objects_yx: npt.NDArray[np.int32], min_pixels: int) -> npt.NDArray[np.int32]:
    """Return numbers of objects (Y, X) without objects of fewer than `min_pixels`, numbered anew from 1."""
    kept = np.bincount(objects_yx.ravel(), minlength=1) >= min_pixels
    kept[0] = False
    return np.asarray((np.cumsum(kept) * kept)[objects_yx], np.int32)


def fill_holes(labels_yx: npt.NDArray[Label]) -> npt.NDArray[Label]:
    """Return labels (Y, X) in which pieces of 0 that lie inside one other label have that label.

    A piece that reaches the edge of the plane, or touches two labels, is no hole.
    """
    pieces_yx, num_pieces = ndimage.label(labels_yx == 0)
    pieces, values, _ = _surroundings(pieces_yx, labels_yx)
    new = np.zeros(num_pieces + 1, labels_yx.dtype)
    new[pieces] = values
    new[np.bincount(pieces, minlength=num_pieces + 1) != 1] = 0
    for edge in (pieces_yx[0], pieces_yx[-1], pieces_yx[:, 0], pieces_yx[:, -1]):
        new[edge] = 0
    return np.where(labels_yx == 0, new[pieces_yx], labels_yx).astype(labels_yx.dtype)


def _surroundings(
    pieces_yx: npt.NDArray[np.integer], labels_yx: npt.NDArray[Label]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return each piece with each label around it, and how many pixel sides the two share, as three equal columns."""
    base = int(labels_yx.max()) + 1
    pairs = []
    for pieces, labels in ((pieces_yx, labels_yx), (pieces_yx.T, labels_yx.T)):
        for inside, outside in ((np.s_[:-1], np.s_[1:]), (np.s_[1:], np.s_[:-1])):
            at_side = (pieces[inside] > 0) & (pieces[outside] != pieces[inside])
            pairs.append(pieces[inside][at_side].astype(np.int64) * base + labels[outside][at_side])
    pair, sides = np.unique(np.concatenate(pairs), return_counts=True)
    return pair // base, pair % base, sides
