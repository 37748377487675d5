"""From what a network says of each pixel to objects that touch and are still told apart.

Such a network has three outputs: background, the interior of objects, and their boundary, a contour within each. Their
interiors do not touch, so each is the seed of an object, which takes its boundary back by a watershed. This is how the
winners of the Data Science Bowl 2018 divided nuclei (Caicedo et al. 2019, doi:10.1038/s41592-019-0612-7).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.segmentation import watershed

INTERIOR, BOUNDARY = 1, 2
"""Outputs besides background, which is 0."""
SEED_PROBABILITY = 0.5
"""Interior is where its probability is larger."""
MIN_PIXELS = 8
"""Smaller seeds are noise, and so are smaller regions without a seed."""


def class_probabilities(outputs_oyx: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the probabilities (2, Y, X) of background and object from those of the three outputs (3, Y, X)."""
    return np.stack([outputs_oyx[0], outputs_oyx[INTERIOR] + outputs_oyx[BOUNDARY]])


def find_objects(
    outputs_oyx: npt.NDArray[np.float32],
    mask_yx: npt.NDArray[np.integer],
    *,
    seed_probability: float = SEED_PROBABILITY,
    min_pixels: int = MIN_PIXELS,
) -> npt.NDArray[np.int32]:
    """Divide a mask into objects.

    Parameters
    ----------
    outputs_oyx
        (3, Y, X) probabilities of background, interior and boundary.
    mask_yx
        (Y, X), not 0 where there is an object.
    seed_probability
        Interior is where its probability is larger.
    min_pixels
        Smaller seeds do not count.

    Returns
    -------
    objects_yx
        (Y, X) numbers from 1, 0 where there is none. A region of the mask without a seed is one object; one that is
        smaller than `min_pixels` is none.
    """
    interior_yx = outputs_oyx[INTERIOR]
    inside_yx = mask_yx != 0
    seeds_yx = _regions((interior_yx > seed_probability) & inside_yx, min_pixels)
    regions_yx = _regions(inside_yx, min_pixels)
    seeded = np.unique(regions_yx[seeds_yx > 0])
    seedless_yx = (regions_yx > 0) & ~np.isin(regions_yx, seeded)
    seeds_yx[seedless_yx] = seeds_yx.max() + regions_yx[seedless_yx]
    objects_yx = watershed(-interior_yx, seeds_yx, mask=inside_yx)
    _, numbers = np.unique(np.append(0, objects_yx), return_inverse=True)
    return np.asarray(numbers[1:].reshape(objects_yx.shape), np.int32)


def _regions(inside_yx: npt.NDArray[np.bool_], min_pixels: int) -> npt.NDArray[np.int32]:
    """Return the connected regions (Y, X), numbered from 1, without the small ones."""
    regions_yx, _ = ndimage.label(inside_yx)
    is_small = np.bincount(regions_yx.ravel()) < min_pixels
    return np.where(is_small[regions_yx], 0, regions_yx).astype(np.int32)
