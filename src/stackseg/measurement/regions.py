"""Sizes, centroids and bounding boxes of numbered regions, gathered plane by plane.

scikit-image's `regionprops` holds the coordinates of all voxels of a region, 24 bytes each: more than a pore space that
fills half of a volume leaves room for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Regions:
    """N regions, by rising number; lengths are in voxels."""

    numbers_n: Integers
    sizes_n: Integers
    """Voxels."""
    sums_n3: Integers
    """Sums of the indices (z, y, x) of all voxels."""
    low_n3: Integers
    """First index (z, y, x) inside."""
    high_n3: Integers
    """First index (z, y, x) behind."""

    def __len__(self) -> int:
        return len(self.numbers_n)

    @property
    def centroids_n3(self) -> npt.NDArray[np.float64]:
        """Mean indices (z, y, x)."""
        return self.sums_n3 / self.sizes_n[:, None]

    @classmethod
    def merged(cls, parts: Sequence[Self]) -> Self:
        """Return the regions of several planes, those with the same number as one."""
        numbers = np.concatenate([one.numbers_n for one in parts])
        order = np.argsort(numbers, kind="stable")
        starts, numbers_n = _groups(numbers[order])
        sizes = np.concatenate([one.sizes_n for one in parts])[order]
        sums = np.concatenate([one.sums_n3 for one in parts])[order]
        low = np.concatenate([one.low_n3 for one in parts])[order]
        high = np.concatenate([one.high_n3 for one in parts])[order]
        return cls(
            numbers_n,
            np.add.reduceat(sizes, starts),
            np.add.reduceat(sums, starts),
            np.minimum.reduceat(low, starts),
            np.maximum.reduceat(high, starts),
        )


def regions_of_plane(numbers_yx: Integers, z: int) -> Regions:
    """Return the regions of plane z, whose pixels (Y, X) hold their number, and 0 where there is none."""
    places = np.flatnonzero(numbers_yx)
    numbers = numbers_yx.ravel()[places]
    order = np.argsort(numbers, kind="stable")
    starts, numbers_n = _groups(numbers[order])
    y, x = np.divmod(places[order], numbers_yx.shape[1])
    sizes_n = np.diff(starts, append=len(places))
    low_y, low_x = (np.minimum.reduceat(one, starts) for one in (y, x))
    high_y, high_x = (np.maximum.reduceat(one, starts) for one in (y, x))
    sum_y, sum_x = (np.add.reduceat(one, starts) for one in (y, x))
    plane_n = np.full(len(starts), z)
    return Regions(
        numbers_n,
        sizes_n,
        np.stack([z * sizes_n, sum_y, sum_x], axis=1),
        np.stack([plane_n, low_y, low_x], axis=1),
        np.stack([plane_n, high_y, high_x], axis=1) + 1,
    )


def _groups(ordered: Integers) -> tuple[Integers, Integers]:
    """Return where each new number begins among ordered ones, and the numbers."""
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1)) if len(ordered) else np.zeros(0, np.intp)
    return starts, ordered[starts]
