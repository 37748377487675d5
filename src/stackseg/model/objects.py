"""From what a network says of each pixel to objects that touch and are still told apart.

Such a network has three outputs: background, the interior of objects, and their boundary, a contour within each (as the
winners of the Data Science Bowl 2018 had, Caicedo et al. 2019, doi:10.1038/s41592-019-0612-7). A pixel's depth is its
distance from background and contours, less where the network doubts that it is interior. Each basin of the depth is an
object; two are one where the neck between them is hardly narrower than the smaller one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from skimage.filters import gaussian
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed
from torch import Tensor

INTERIOR, BOUNDARY = 1, 2
"""Outputs besides background, which is 0."""
SURE_CONTOUR = 0.5
"""A contour is where its probability is larger."""
NECK = 0.05
"""By which share the neck between two objects is less deep than either, at least."""
MIN_PIXELS = 12
"""Smaller basins are noise, and so are smaller regions."""
_FLOOR = 1e-6


def class_probabilities(outputs_oyx: Tensor) -> Tensor:
    """Return the probabilities (2, Y, X) of background and object from those of the three outputs (3, Y, X)."""
    return torch.stack([outputs_oyx[0], outputs_oyx[INTERIOR] + outputs_oyx[BOUNDARY]])


def find_objects(
    outputs_oyx: npt.NDArray[np.float32],
    mask_yx: npt.NDArray[np.integer],
    *,
    neck: float = NECK,
    min_pixels: int = MIN_PIXELS,
) -> npt.NDArray[np.int32]:
    """Divide a mask into objects.

    Parameters
    ----------
    outputs_oyx
        (3, Y, X) probabilities of background, interior and boundary.
    mask_yx
        (Y, X), not 0 where there is an object.
    neck
        By which share the neck between two objects is less deep than either, at least.
    min_pixels
        Smaller basins belong to their neighbour.

    Returns
    -------
    objects_yx
        (Y, X) numbers from 1, 0 where there is none: in regions of the mask that are smaller than `min_pixels`, too.
    """
    regions_yx = _regions(mask_yx != 0, min_pixels)
    inside_yx = regions_yx > 0
    distance_yx = ndimage.distance_transform_edt(inside_yx & (outputs_oyx[BOUNDARY] <= SURE_CONTOUR))
    # squared, the probability divides best (F1 on validation fields of nuclei)
    depth_yx = gaussian(distance_yx * outputs_oyx[INTERIOR] ** 2, 1.0)
    # of logarithms, a difference is a share
    height_yx = np.log(np.maximum(depth_yx, _FLOOR))
    # no h_maxima: of two peaks of one height it keeps both, whatever lies between
    levelled_yx = reconstruction(height_yx + np.log1p(-neck), height_yx)
    peaks_yx = ndimage.label(local_maxima(levelled_yx) & inside_yx, np.ones((3, 3)))[0]
    basins_yx = watershed(-height_yx, peaks_yx, mask=inside_yx)
    peaks_yx[np.bincount(basins_yx.ravel())[basins_yx] < min_pixels] = 0
    peakless_yx = inside_yx & ~np.isin(regions_yx, np.unique(regions_yx[peaks_yx > 0]))
    peaks_yx[peakless_yx] = peaks_yx.max() + regions_yx[peakless_yx]
    objects_yx = watershed(-height_yx, peaks_yx, mask=inside_yx)
    _, numbers = np.unique(np.append(0, objects_yx), return_inverse=True)
    return np.asarray(numbers[1:].reshape(objects_yx.shape), np.int32)


def _regions(inside_yx: npt.NDArray[np.bool_], min_pixels: int) -> npt.NDArray[np.int32]:
    """Return the connected regions (Y, X), numbered from 1, without the small ones."""
    regions_yx, _ = ndimage.label(inside_yx)
    is_small = np.bincount(regions_yx.ravel()) < min_pixels
    return np.where(is_small[regions_yx], 0, regions_yx).astype(np.int32)
