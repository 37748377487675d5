"""Channels of a plane: colour policy, and neighbours as context."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from skimage.color import gray2rgb, rgb2gray

from stackseg.errors import DataError

ColourPolicy = Literal["keep", "grey", "rgb"]


class PlaneSource(Protocol):
    """Whatever has planes: an open stack, a specimen, an image received over HTTP."""

    def __len__(self) -> int:
        """Return the number of planes."""
        ...

    def plane(self, z: int) -> npt.NDArray[np.generic]:
        """Return plane z as (Y, X, C) in its raw type."""
        ...


def apply_colour(image_yxc: npt.NDArray[np.generic], policy: ColourPolicy, where: str) -> npt.NDArray[np.generic]:
    """Bring a plane (Y, X, C) to the channels that `data.colour` asks for.

    ``grey`` is scikit-image's luminance of RGB in the raw type's range; ``rgb`` repeats grey three times.

    Raises
    ------
    DataError
        The plane has neither one channel nor three, and the policy is not ``keep``.
    """
    num_channels = image_yxc.shape[2]
    if policy == "keep" or (policy == "grey" and num_channels == 1) or (policy == "rgb" and num_channels == 3):
        return image_yxc
    if num_channels not in (1, 3):
        raise DataError(
            f"{num_channels} channels",
            expected="1 or 3",
            where=where,
            remedy=f"data.colour: {policy} converts between grey and RGB only; set it to keep",
        )
    if policy == "rgb":
        return np.asarray(gray2rgb(image_yxc[:, :, 0]))
    # float input keeps its range in rgb2gray, integers would be scaled to 0..1
    grey_yx = rgb2gray(image_yxc.astype(np.float64))
    if image_yxc.dtype.kind in "iu":
        grey_yx = np.rint(grey_yx)
    return np.asarray(grey_yx, image_yxc.dtype)[:, :, None]


def context_indices(z: int, num_planes: int, context_slices: int) -> list[int]:
    """Return the 2k+1 plane numbers around z, mirrored at the ends of the stack (-1 becomes 1)."""
    if num_planes == 1:
        return [0] * (2 * context_slices + 1)
    period = 2 * (num_planes - 1)
    indices = []
    for offset in range(-context_slices, context_slices + 1):
        place = (z + offset) % period
        indices.append(min(place, period - place))
    return indices
