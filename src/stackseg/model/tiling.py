"""Windows that cover a plane, and the weights that blend them: the only geometry of inference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stackseg.model.plane_image import PlaneImage, Region

# the deepest smp encoders halve the image five times
MULTIPLE = 32


@dataclass(frozen=True)
class Tiling:
    """How windows cover planes.

    All windows of a plane have one size, the smallest with which no more of them are needed. They begin at multiples of
    32, so that a network which halves the image samples it there as it would in the whole plane: beside that, it hardly
    matters how windows are blended.

    Parameters
    ----------
    tile
        Largest side of a window in pixels, a multiple of 32.
    overlap
        Pixels that neighbouring windows share at least; 32 less than the tile at most. A quarter of it at each inner
        side of a window is computed but not used, so that what a network makes up beyond its window's edge never
        reaches the mask.
    """

    tile: int
    overlap: int

    def padded_shape(self, shape_yx: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) that the windows of a plane cover: multiples of 32."""
        height, width = (-(-size // MULTIPLE) * MULTIPLE for size in shape_yx)
        return height, width

    def window_shape(self, shape_yx: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) of every window of a plane."""
        height, width = (self._window(size) for size in self.padded_shape(shape_yx))
        return height, width

    def read(self, image: PlaneImage, window: Region) -> npt.NDArray[np.float32]:
        """Return the pixels (Y, X, C) of a window; beyond its lower and right edges the plane is mirrored."""
        inside, beyond = [], []
        for part, size in zip(window, image.shape[:2], strict=True):
            missing = max(0, part.stop - size)
            inside.append(slice(max(0, min(part.start, size - missing)), min(part.stop, size)))
            beyond.append((0, missing))
        pixels_yxc = image[inside[0], inside[1]]
        if any(map(any, beyond)):
            pixels_yxc = np.pad(pixels_yxc, [*beyond, (0, 0)], mode="symmetric")
        top, left = (part.start - read.start for part, read in zip(window, inside, strict=True))
        return pixels_yxc[top:, left:]

    def windows(self, shape_yx: tuple[int, int], region: Region) -> Iterator[Region]:
        """Yield the windows that cover a region of a plane once it is padded, row by row."""
        padded_yx = self.padded_shape(shape_yx)
        height, width = self.window_shape(shape_yx)
        for top in self._starts(padded_yx[0], height):
            for left in self._starts(padded_yx[1], width):
                window = slice(top, top + height), slice(left, left + width)
                if all(
                    part.start < one.stop and one.start < part.stop for part, one in zip(window, region, strict=True)
                ):
                    yield window

    def weights(self, window: Region, shape_yx: tuple[int, int]) -> Tensor:
        """Return the blending weights (Y, X) of one window of a plane; 1 towards the plane's own edges."""
        rows, columns = (self._ramp(part, size) for part, size in zip(window, self.padded_shape(shape_yx), strict=True))
        return torch.outer(rows, columns)

    def _step(self, window: int) -> int:
        return (window - self.overlap) // MULTIPLE * MULTIPLE

    def _window(self, size: int) -> int:
        """Return the side of the windows that cover a padded size."""
        if size <= self.tile:
            return size
        number = next(n for n in count(2) if (n - 1) * self._step(self.tile) + self.tile >= size)
        fitting = (side for side in count(MULTIPLE, MULTIPLE) if (number - 1) * self._step(side) + side >= size)
        return next(fitting)

    def _starts(self, size: int, window: int) -> list[int]:
        if size == window:
            return [0]
        last = size - window
        return [*range(0, last, self._step(window)), last]

    def _ramp(self, part: slice, size: int) -> Tensor:
        length = part.stop - part.start
        unused = self.overlap // 4
        rising = ((torch.arange(length) - unused + 1) / (self.overlap - 2 * unused + 1)).clamp(0, 1)
        ramp = torch.ones(length)
        if part.start > 0:
            ramp = torch.minimum(ramp, rising)
        if part.stop < size:
            ramp = torch.minimum(ramp, rising.flip(0))
        return ramp


class Blend:
    """Weighted mean of windows over a region of one plane, on the device where they were computed.

    Parameters
    ----------
    tiling
        The geometry.
    shape_yx
        Shape of the plane before padding.
    region
        Of the plane.
    """

    def __init__(self, tiling: Tiling, shape_yx: tuple[int, int], region: Region) -> None:
        self._tiling = tiling
        self._shape_yx = shape_yx
        self._region = region
        self._weighted_cyx = torch.empty(0)
        self._weight_yx = torch.empty(0)

    def add(self, window: Region, values_cyx: Tensor) -> None:
        """Add the values (C, Y, X) of one window; what lies outside the region is left out."""
        if values_cyx.shape[1:] == self._tiling.padded_shape(self._shape_yx):  # the only window
            self._weighted_cyx = values_cyx[:, *self._region]
            return
        if not self._weight_yx.numel():
            height, width = (part.stop - part.start for part in self._region)
            self._weighted_cyx = values_cyx.new_zeros(len(values_cyx), height, width)
            self._weight_yx = values_cyx.new_zeros(height, width)
        weights_yx = self._tiling.weights(window, self._shape_yx).to(values_cyx.device)
        of_window = _shared(window, self._region, window)
        of_region = _shared(window, self._region, self._region)
        self._weighted_cyx[:, *of_region] += values_cyx[:, *of_window] * weights_yx[of_window]
        self._weight_yx[of_region] += weights_yx[of_window]

    def result(self) -> Tensor:
        """Return the blended values (C, Y, X) of the region."""
        if self._weight_yx.numel():
            self._weighted_cyx /= self._weight_yx
        return self._weighted_cyx


def _shared(one: Region, other: Region, seen_from: Region) -> Region:
    """Return what two regions share, counted from the start of a third."""
    rows, columns = (
        slice(max(a.start, b.start) - c.start, min(a.stop, b.stop) - c.start)
        for a, b, c in zip(one, other, seen_from, strict=True)
    )
    return rows, columns
