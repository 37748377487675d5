"""Windows that cover a plane, and the weights that blend them: the only geometry of inference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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

    def pad(self, image_yxc: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Mirror a plane (Y, X, C) beyond its lower and right edges up to multiples of 32."""
        shape_yx = image_yxc.shape[0], image_yxc.shape[1]
        beyond = [(0, want - have) for want, have in zip(self.padded_shape(shape_yx), shape_yx, strict=True)]
        return np.pad(image_yxc, [*beyond, (0, 0)], mode="symmetric") if any(map(any, beyond)) else image_yxc

    def windows(self, shape_yx: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
        """Yield the windows (rows, columns) that cover a plane once it is padded, row by row."""
        padded_yx = self.padded_shape(shape_yx)
        height, width = self.window_shape(shape_yx)
        for top in self._starts(padded_yx[0], height):
            for left in self._starts(padded_yx[1], width):
                yield slice(top, top + height), slice(left, left + width)

    def weights(self, window: tuple[slice, slice], shape_yx: tuple[int, int]) -> Tensor:
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
    """Weighted mean of windows over one plane, on the device where they were computed.

    Parameters
    ----------
    tiling
        The geometry.
    shape_yx
        Shape of the plane before padding.
    """

    def __init__(self, tiling: Tiling, shape_yx: tuple[int, int]) -> None:
        self._tiling = tiling
        self._shape_yx = shape_yx
        self._weighted_cyx = torch.empty(0)
        self._weight_yx = torch.empty(0)

    def add(self, window: tuple[slice, slice], values_cyx: Tensor) -> None:
        """Add the values (C, Y, X) of one window."""
        padded_yx = self._tiling.padded_shape(self._shape_yx)
        if values_cyx.shape[1:] == padded_yx:  # the only window
            self._weighted_cyx, self._weight_yx = values_cyx, values_cyx.new_ones(1, 1)
            return
        if not self._weight_yx.numel():
            self._weighted_cyx = values_cyx.new_zeros(len(values_cyx), *padded_yx)
            self._weight_yx = values_cyx.new_zeros(padded_yx)
        weights_yx = self._tiling.weights(window, self._shape_yx).to(values_cyx.device)
        self._weighted_cyx[:, *window] += values_cyx * weights_yx
        self._weight_yx[window] += weights_yx

    def result(self) -> Tensor:
        """Return the blended values (C, Y, X) of the plane as it was before padding."""
        height, width = self._shape_yx
        if self._weight_yx.numel() > 1:
            self._weighted_cyx /= self._weight_yx
        return self._weighted_cyx[:, :height, :width]
