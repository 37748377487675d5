"""Planes as the network wants them, of which a window at a time is made where the whole would fill the memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from stackseg.dataset.channels import apply_colour
from stackseg.dataset.normalisation import ChannelStatistics, IntensityPolicy

Region = tuple[slice, slice]
"""Rows and columns of a plane, from start to stop."""


def whole(shape: Sequence[int]) -> Region:
    """Return the region that is all of a plane of shape (Y, X, …)."""
    return slice(0, shape[0]), slice(0, shape[1])


def blocks(shape: Sequence[int], side: int) -> Iterator[Region]:
    """Yield the regions of at most side × side pixels that divide a plane of shape (Y, X, …)."""
    for top in range(0, shape[0], side):
        for left in range(0, shape[1], side):
            yield slice(top, min(top + side, shape[0])), slice(left, min(left + side, shape[1]))


class PlaneImage(Protocol):
    """A plane (Y, X, C) in the network's intensities: an array, or what gives one for a region."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the size of (Y, X, C)."""
        ...

    def __getitem__(self, region: Region, /) -> npt.NDArray[np.float32]:
        """Return the pixels (Y, X, C) of a region."""
        ...


class LargePlane:
    """A plane that is held in its raw type and brought to the network's intensities region by region.

    Parameters
    ----------
    raw_yxc
        The plane (Y, X, C).
    intensity
        How raw planes become network inputs.
    reference
        Statistics for all planes of the stack; None where the plane is its own reference.
    where
        What errors call it.
    """

    def __init__(
        self,
        raw_yxc: npt.NDArray[np.generic],
        intensity: IntensityPolicy,
        reference: tuple[ChannelStatistics, ...] | None,
        where: str,
    ) -> None:
        self._raw_yxc = raw_yxc
        self._intensity = intensity
        self._reference = reference or intensity.plane_reference(apply_colour(raw_yxc, intensity.colour, where))
        self._where = where

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the size of (Y, X, C)."""
        return *self._raw_yxc.shape[:2], len(self._reference)

    def __getitem__(self, region: Region, /) -> npt.NDArray[np.float32]:
        """Return the pixels (Y, X, C) of a region."""
        return self._intensity.apply(self._raw_yxc[region], self._reference, self._where)


@dataclass(frozen=True)
class Neighbours:
    """Planes of one size, joined to one image of all their channels."""

    planes: Sequence[PlaneImage]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the size of (Y, X, planes × C)."""
        return *self.planes[0].shape[:2], sum(one.shape[2] for one in self.planes)

    def __getitem__(self, region: Region, /) -> npt.NDArray[np.float32]:
        """Return the pixels (Y, X, planes × C) of a region."""
        return np.concatenate([one[region] for one in self.planes], axis=2)


@dataclass(frozen=True)
class Turn:
    """A symmetry of the plane: whether it is transposed, and the axes along which it is then flipped."""

    transposed: bool
    flipped: tuple[int, ...]

    def of(self, image: PlaneImage) -> TurnedPlane:
        """Return the plane turned."""
        return TurnedPlane(image, self)

    def shape_of(self, shape_yx: tuple[int, int]) -> tuple[int, int]:
        """Return the size that a plane has once it is turned."""
        return (shape_yx[1], shape_yx[0]) if self.transposed else shape_yx

    def region_of(self, region: Region, shape_yx: tuple[int, int]) -> Region:
        """Return where a region of a plane of that size lies once it is turned."""
        if self.transposed:
            region = region[1], region[0]
        return self._flip(region, self.shape_of(shape_yx))

    def region_before(self, region: Region, shape_yx: tuple[int, int]) -> Region:
        """Return where a region of the turned plane lies in the plane, whose size is given, before it is turned."""
        rows, columns = self._flip(region, self.shape_of(shape_yx))
        return (columns, rows) if self.transposed else (rows, columns)

    def apply(self, pixels_yxc: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Turn pixels (Y, X, C)."""
        return np.flip(pixels_yxc.swapaxes(0, 1) if self.transposed else pixels_yxc, self.flipped)

    def undo(self, values_vyx: Tensor) -> Tensor:
        """Turn values (V, Y, X) back."""
        upright_vyx = values_vyx.flip([axis + 1 for axis in self.flipped])
        return upright_vyx.transpose(1, 2) if self.transposed else upright_vyx

    def _flip(self, region: Region, shape_yx: tuple[int, int]) -> Region:
        rows, columns = (
            slice(size - part.stop, size - part.start) if axis in self.flipped else part
            for axis, (part, size) in enumerate(zip(region, shape_yx, strict=True))
        )
        return rows, columns


@dataclass(frozen=True)
class TurnedPlane:
    """A plane seen through one of its symmetries."""

    image: PlaneImage
    turn: Turn

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the size of (Y, X, C)."""
        height, width, channels = self.image.shape
        return *self.turn.shape_of((height, width)), channels

    def __getitem__(self, region: Region, /) -> npt.NDArray[np.float32]:
        """Return the pixels (Y, X, C) of a region."""
        height, width = self.image.shape[:2]
        return self.turn.apply(self.image[self.turn.region_before(region, (height, width))])
