"""Random warps and intensities of a patch, as functions of a generator of random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

ImageYXC = npt.NDArray[np.float32]
MaskYX = npt.NDArray[np.uint8]
FieldYX = npt.NDArray[np.float32]

# Mirrored rather than blank: image and mask stay true to each other there, so every pixel keeps a label, and no
# invented edges are learned.
BORDER = cv2.BORDER_REFLECT_101
BLURRED_SHARE = 1 / 6
NOISY_SHARE = 1 / 5


@dataclass(frozen=True)
class WarpStrength:
    """How far patches are turned, zoomed and bent.

    Parameters
    ----------
    turn
        Largest angle either way, degrees.
    zoom
        Largest magnification and, inverted, reduction.
    bend
        Standard deviation of normal displacements on a coarse grid, as a share of the side (the elastic deformation
        of Ronneberger et al. 2015, arXiv:1505.04597).
    """

    turn: float
    zoom: float
    bend: float


@dataclass(frozen=True)
class IntensityStrength:
    """How far standardised intensities (mean 0, standard deviation 1) are varied.

    Parameters
    ----------
    contrast
        Largest factor and, inverted, smallest.
    brightness
        Largest offset either way.
    shading
        Standard deviation of a smooth offset, as of uneven illumination.
    blur
        Largest standard deviation of a Gaussian blur, pixels; for one in six patches.
    noise
        Largest standard deviation of Gaussian noise; for one in five patches.
    """

    contrast: float
    brightness: float
    shading: float = 0.0
    blur: float = 0.0
    noise: float = 0.0


def warp_maps(draw: np.random.Generator, shape_yx: tuple[int, int], strength: WarpStrength) -> tuple[FieldYX, FieldYX]:
    """Return where each pixel of a patch comes from, as columns and rows (Y, X)."""
    height, width = shape_yx
    angle = np.deg2rad(draw.uniform(-strength.turn, strength.turn))
    scale = strength.zoom ** draw.uniform(-1.0, 1.0)
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    y_from_centre, x_from_centre = np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2
    column = (-sine * y_from_centre, cosine * x_from_centre + (width - 1) / 2)
    row = (cosine * y_from_centre, sine * x_from_centre + (height - 1) / 2)
    return (
        _smooth_field(draw, *column, strength.bend * width, num_knots=4),
        _smooth_field(draw, *row, strength.bend * height, num_knots=4),
    )


def resample_image(image_yxc: ImageYXC, column_yx: FieldYX, row_yx: FieldYX) -> ImageYXC:
    """Return the image (Y, X, C), bilinearly resampled, mirrored beyond its edges."""
    # OpenCV resamples at most four channels at once.
    parts = [image_yxc[..., first : first + 4] for first in range(0, image_yxc.shape[2], 4)]
    warped = [cv2.remap(part, column_yx, row_yx, cv2.INTER_LINEAR, borderMode=BORDER) for part in parts]
    return np.concatenate([part.reshape(*image_yxc.shape[:2], -1) for part in warped], axis=2)


def resample_mask(mask_yx: MaskYX, column_yx: FieldYX, row_yx: FieldYX) -> MaskYX:
    """Return the mask (Y, X), resampled by nearest neighbour, mirrored beyond its edges."""
    warped: Any = cv2.remap(mask_yx, column_yx, row_yx, cv2.INTER_NEAREST, borderMode=BORDER)
    return warped  # type: ignore[no-any-return]  # OpenCV's stubs do not know that the type stays


def vary_intensity(draw: np.random.Generator, image_yxc: ImageYXC, strength: IntensityStrength) -> ImageYXC:
    """Return a standardised image (Y, X, C) with other intensities, never clipped.

    Contrast and brightness are the same for all channels, which may be neighbouring planes. Gamma is left out: it has
    no meaning below 0.
    """
    gain = np.float32(strength.contrast ** draw.uniform(-1.0, 1.0))
    offset = draw.uniform(-strength.brightness, strength.brightness)
    varied_yxc: Any = image_yxc * gain
    if strength.shading:
        rows_y, columns_x = np.zeros(image_yxc.shape[0]), np.full(image_yxc.shape[1], offset)
        varied_yxc += _smooth_field(draw, rows_y, columns_x, strength.shading, num_knots=3)[..., None]
    else:
        varied_yxc += np.float32(offset)
    if strength.blur and draw.random() < BLURRED_SHARE:
        sigma = draw.uniform(0.3, strength.blur)
        varied_yxc = cv2.GaussianBlur(varied_yxc, (0, 0), sigma, borderType=BORDER).reshape(image_yxc.shape)
    if strength.noise and draw.random() < NOISY_SHARE:
        grain_yxc = draw.standard_normal(image_yxc.shape, dtype=np.float32)
        grain_yxc *= np.float32(draw.uniform(0.0, strength.noise))
        varied_yxc += grain_yxc
    return varied_yxc  # type: ignore[no-any-return]  # OpenCV's stubs do not know that the type stays


def _smooth_field(
    draw: np.random.Generator,
    rows_y: npt.NDArray[np.float64],
    columns_x: npt.NDArray[np.float64],
    sigma: float,
    *,
    num_knots: int,
) -> FieldYX:
    """Return rows_y[y] + columns_x[x] + a smooth random field: normal values on a coarse grid, bicubic in between.

    One product of two narrow matrices gives the whole field, without a large array in between.
    """
    knots = sigma * draw.standard_normal((num_knots, num_knots))
    weights_y, weights_x = _bicubic_weights(len(rows_y), num_knots), _bicubic_weights(len(columns_x), num_knots)
    left = np.column_stack([weights_y, rows_y, np.ones_like(rows_y)]).astype(np.float32)
    right = np.vstack([knots @ weights_x.T, np.ones_like(columns_x), columns_x]).astype(np.float32)
    # Not by @: the threads that a BLAS starts for it wait for each other, for 10 ms where the cores are busy.
    field: FieldYX = np.einsum("yk,kx->yx", left, right)
    return field


def _bicubic_weights(num_pixels: int, num_knots: int) -> npt.NDArray[Any]:
    """Return (num_pixels, num_knots): how much of each knot is in each pixel."""
    return cv2.resize(np.eye(num_knots), (num_knots, num_pixels), interpolation=cv2.INTER_CUBIC)
