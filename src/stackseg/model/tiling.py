"""Windows that cover a plane, and the weights that blend them: the only geometry of inference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# the deepest smp encoders halve the image five times
MULTIPLE = 32


@dataclass(frozen=True)
class Tiling:
    """How windows cover planes.

    Parameters
    ----------
    tile
        Side of a window in pixels, a multiple of 32. A plane smaller than that takes a window of its own
        size rounded up to a multiple of 32.
    overlap
        Pixels that neighbouring windows share. A quarter of it at each inner side of a window is computed but
        not used, so that what a network makes up beyond its window's edge never reaches the mask.
    """

    tile: int
    overlap: int

    def window_shape(self, shape_yx: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) of every window of a plane."""
        height, width = (min(self.tile, -(-size // MULTIPLE) * MULTIPLE) for size in shape_yx)
        return height, width

    def pad(self, image_yxc: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Mirror a plane (Y, X, C) beyond its lower and right edges until one window fits in."""
        shape_yx = image_yxc.shape[:2]
        window = self.window_shape((shape_yx[0], shape_yx[1]))
        beyond = [(0, max(0, want - have)) for want, have in zip(window, shape_yx, strict=True)]
        if not any(after for _, after in beyond):
            return image_yxc
        return np.pad(image_yxc, [*beyond, (0, 0)], mode="symmetric")

    def windows(self, shape_yx: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
        """Yield the windows (rows, columns) that cover a padded plane, row by row."""
        height, width = self.window_shape(shape_yx)
        for top in self._starts(shape_yx[0], height):
            for left in self._starts(shape_yx[1], width):
                yield slice(top, top + height), slice(left, left + width)

    def weights(self, window: tuple[slice, slice], shape_yx: tuple[int, int]) -> npt.NDArray[np.float32]:
        """Return the blending weights (Y, X) of one window of a padded plane; 1 towards the plane's own edges."""
        rows, columns = (self._ramp(part, size) for part, size in zip(window, shape_yx, strict=True))
        return np.outer(rows, columns).astype(np.float32)

    def _starts(self, size: int, window: int) -> list[int]:
        if size <= window:  # which may be as small as the overlap
            return [0]
        last = size - window
        return [*range(0, last, window - self.overlap), last]

    def _ramp(self, part: slice, size: int) -> npt.NDArray[np.float64]:
        length = part.stop - part.start
        unused = self.overlap // 4
        rising = np.clip((np.arange(length) - unused + 1) / (self.overlap - 2 * unused + 1), 0, 1)
        ramp = np.ones(length)
        if part.start > 0:
            ramp = np.minimum(ramp, rising)
        if part.stop < size:
            ramp = np.minimum(ramp, rising[::-1])
        return ramp


class Blend:
    """Weighted mean of windows over one plane.

    Parameters
    ----------
    tiling
        The geometry.
    shape_yx
        Shape of the plane before padding.
    num_channels
        Channels of the values, e.g. classes.
    """

    def __init__(self, tiling: Tiling, shape_yx: tuple[int, int], num_channels: int) -> None:
        self._tiling = tiling
        self._shape_yx = shape_yx
        window = tiling.window_shape(shape_yx)
        self.padded_yx = (max(shape_yx[0], window[0]), max(shape_yx[1], window[1]))
        self._sum_cyx = np.zeros((num_channels, *self.padded_yx), np.float32)
        self._weight_yx = np.zeros(self.padded_yx, np.float32)

    def add(self, window: tuple[slice, slice], values_cyx: npt.NDArray[np.float32]) -> None:
        """Add the values (C, Y, X) of one window."""
        weights_yx = self._tiling.weights(window, self.padded_yx)
        self._sum_cyx[:, *window] += values_cyx * weights_yx
        self._weight_yx[window] += weights_yx

    def result(self) -> npt.NDArray[np.float32]:
        """Return the blended values (C, Y, X) of the plane as it was before padding."""
        height, width = self._shape_yx
        return (self._sum_cyx / self._weight_yx)[:, :height, :width]
