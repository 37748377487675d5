"""Random variation of training patches; the only module that knows albumentations."""

from __future__ import annotations

import json
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# albumentations asks the network for its newest release when it is imported; 2.0.8 is pinned, so nobody needs to know.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
import numpy.typing as npt
from albumentations.core.type_definitions import Targets
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stackseg.atomic import read_text
from stackseg.dataset.labels.table import IGNORE_INDEX
from stackseg.errors import ParamsError

ImageYXC = npt.NDArray[np.float32]
MaskYX = npt.NDArray[np.unsignedinteger]
FieldYX = npt.NDArray[np.float32]

Augmentation = Callable[[ImageYXC, MaskYX, int], tuple[ImageYXC, MaskYX]]

# Standardised intensities that a pipeline from a file sees as 0 and 1, the darkest and brightest of a photograph.
FILE_RANGE = (-2.5, 2.5)
# They expect raw intensities, or give something other than an image.
UNFIT = ("Normalize", "ToFloat", "FromFloat", "ToTensorV2", "ToTensor3D")
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


class Warp(A.DualTransform):  # type: ignore[misc]  # albumentations has no types
    """Turn, zoom and bend image and mask in one resampling."""

    _targets = (Targets.IMAGE, Targets.MASK)

    def __init__(self, strength: WarpStrength, p: float) -> None:
        super().__init__(p=p)
        self.strength = strength

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Return where each pixel comes from."""
        column_yx, row_yx = warp_maps(self.random_generator, params["shape"][:2], self.strength)
        return {"column_yx": column_yx, "row_yx": row_yx}

    def apply(self, img: ImageYXC, column_yx: FieldYX, row_yx: FieldYX, **_: Any) -> ImageYXC:
        """Return the warped image (Y, X, C)."""
        return resample_image(img, column_yx, row_yx)

    def apply_to_mask(self, mask: MaskYX, column_yx: FieldYX, row_yx: FieldYX, **_: Any) -> MaskYX:
        """Return the warped mask (Y, X)."""
        return resample_mask(mask, column_yx, row_yx)


class Intensity(A.ImageOnlyTransform):  # type: ignore[misc]  # albumentations has no types
    """Vary standardised intensities without clipping them.

    albumentations' own transforms of brightness, contrast and noise clip float images to 0..1, which wipes out the half
    of a standardised image that is below 0.
    """

    def __init__(self, strength: IntensityStrength, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.strength = strength

    def apply(self, img: ImageYXC, **_: Any) -> ImageYXC:
        """Return the varied image (Y, X, C)."""
        return vary_intensity(self.random_generator, img, self.strength)


@dataclass(frozen=True)
class _Pipeline:
    """Apply one of two compositions, by whether the patch is square: only then may it be turned by 90°."""

    square: Any
    oblong: Any

    def __call__(self, image_yxc: ImageYXC, mask_yx: MaskYX, seed: int) -> tuple[ImageYXC, MaskYX]:
        composition = self.square if mask_yx.shape[0] == mask_yx.shape[1] else self.oblong
        return _apply(composition, image_yxc, mask_yx, seed)


@dataclass(frozen=True)
class _FilePipeline:
    """Apply a user's composition to the patch, mapped to the range 0..1 that it was written for."""

    composition: Any

    def __call__(self, image_yxc: ImageYXC, mask_yx: MaskYX, seed: int) -> tuple[ImageYXC, MaskYX]:
        # wider than the usual range where the patch is, so that nothing of it is clipped
        low = min(FILE_RANGE[0], float(image_yxc.min()))
        span = max(FILE_RANGE[1], float(image_yxc.max())) - low
        try:
            unit_yxc, varied_yx = _apply(
                self.composition, (image_yxc - np.float32(low)) / np.float32(span), mask_yx, seed
            )
        except Exception as error:  # the pipeline is the user's: whatever it raises is about it
            raise _unfit(f"a transform fails on float32 patches of shape {image_yxc.shape} ({error})") from error
        for name, array, given in (("image", unit_yxc, image_yxc), ("mask", varied_yx, mask_yx)):
            if array.shape != given.shape or array.dtype != given.dtype:
                raise _unfit(
                    f"it turns the {name} from {given.dtype} {given.shape} into {array.dtype} {array.shape}",
                    expected="the same size, number of channels and type",
                )
        return unit_yxc * np.float32(span) + np.float32(low), varied_yx


def build_augmentation(preset: str, *, file: str | Path | None = None) -> Augmentation:
    """Return ``augment(image_yxc, mask_yx, seed)``, which varies a standardised float32 patch and its mask alike.

    The result depends on the patch and the seed alone, so it is the same in any worker. Shapes and types stay.

    Parameters
    ----------
    preset
        ``none``: nothing. ``light``: flips, turns by 90°, slight changes of contrast and brightness. ``em``: also
        elastic bending, stronger changes, blur and noise. ``micrograph``: also turns by any angle, zoom, uneven
        illumination. ``file``: a pipeline of one's own.
    file
        A pipeline saved by albumentations. It sees the standardised range -2.5..2.5 (or the patch's own where that is
        wider) as 0..1, and is mapped back. Masks are resampled by nearest neighbour, and pixels that it draws in from
        outside the patch are ignored ones.

    Raises
    ------
    ParamsError
        A pipeline that cannot be used; while augmenting, too.
    """
    if file is not None:
        return _FilePipeline(_compose(load_pipeline(file)))
    return _unchanged if preset == "none" else _preset(preset)


def check_augmentation(augmentation: Augmentation, shape_yxc: tuple[int, int, int]) -> None:
    """Raise what an augmentation raises on patches of this shape, before it does so in a worker in mid-training.

    Raises
    ------
    ParamsError
        A pipeline from a file does not fit such patches; a transform that is seldom applied may go unnoticed.
    """
    draw = np.random.default_rng(0)
    image_yxc = draw.standard_normal(shape_yxc, dtype=np.float32)
    mask_yx = np.zeros(shape_yxc[:2], np.uint8)
    for seed in range(32):
        augmentation(image_yxc, mask_yx, seed)


def load_pipeline(path: str | Path) -> Mapping[str, Any]:
    """Return a pipeline saved by albumentations (``A.save``, or ``A.to_dict`` written as JSON or YAML), checked.

    Raises
    ------
    ParamsError
        The file is missing or is no such pipeline, knows transforms or arguments that albumentations 2.0.8 does not, or
        holds transforms that do not fit standardised patches.
    """
    try:
        text = read_text(Path(path), ParamsError)
        serialised = json.loads(text) if Path(path).suffix.lower() == ".json" else YAML(typ="safe").load(text)
    except (OSError, json.JSONDecodeError, YAMLError) as error:
        raise _unfit(f"{path} cannot be read ({error})") from error
    if not isinstance(serialised, dict) or not isinstance(serialised.get("transform"), dict):
        raise _unfit(f"{path} is not a pipeline of albumentations", expected="what its A.save writes, JSON or YAML")
    _compose(serialised)
    return serialised


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


def _unchanged(image_yxc: ImageYXC, mask_yx: MaskYX, seed: int) -> tuple[ImageYXC, MaskYX]:
    return image_yxc, mask_yx


def _apply(composition: Any, image_yxc: ImageYXC, mask_yx: MaskYX, seed: int) -> tuple[ImageYXC, MaskYX]:
    # Not set_random_seed: it gives each transform a generator of its own with the same seed, so that, for example, the
    # horizontal and the vertical flip always come together.
    composition.set_random_state(np.random.default_rng(seed), random.Random(seed))
    varied = composition(image=image_yxc, mask=mask_yx)
    return varied["image"], varied["mask"]


def _preset(preset: str) -> Augmentation:
    beyond_flips: dict[str, list[Any]] = {
        "light": [Intensity(IntensityStrength(contrast=1.1, brightness=0.1))],
        "em": [
            Warp(WarpStrength(turn=10, zoom=1.1, bend=0.02), p=0.4),
            Intensity(IntensityStrength(contrast=1.3, brightness=0.3, blur=1.0, noise=0.2)),
        ],
        "micrograph": [
            Warp(WarpStrength(turn=180, zoom=1.25, bend=0.0), p=0.4),
            Intensity(IntensityStrength(contrast=1.5, brightness=0.4, shading=0.15, blur=1.5, noise=0.2)),
        ],
    }
    flips = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]
    square, oblong = ([*turns, *beyond_flips[preset]] for turns in ([A.D4(p=1.0)], flips))
    # no checks of shapes: patch and mask come cut to one size
    return _Pipeline(A.Compose(square, is_check_shapes=False), A.Compose(oblong, is_check_shapes=False))


def _compose(serialised: Mapping[str, Any]) -> Any:
    unfit = [name for name in _transform_names(serialised["transform"]) if name in UNFIT]
    if unfit:
        raise _unfit(f"it holds {unfit[0]}, but patches are standardised before and turned into tensors after it")
    try:
        with warnings.catch_warnings():
            # albumentations only warns of arguments that it does not know, and goes on without them
            warnings.simplefilter("error")
            loaded = A.from_dict(dict(serialised))
    except Exception as error:  # albumentations raises whatever its code and pydantic run into
        complaint = f"unknown transform {error}" if isinstance(error, KeyError) else str(error)
        raise _unfit(f"albumentations {A.__version__} cannot build it ({complaint})") from error
    composition = loaded if isinstance(loaded, A.Compose) else A.Compose([loaded])
    composition.set_mask_interpolation(cv2.INTER_NEAREST)
    for transform in _leaves(composition):
        if hasattr(transform, "border_mode") and hasattr(transform, "fill_mask"):
            transform.fill_mask = IGNORE_INDEX
    return composition


def _transform_names(serialised: Any) -> Iterator[str]:
    """Yield the class names in a serialised pipeline, without their packages."""
    if isinstance(serialised, Mapping):
        if isinstance(name := serialised.get("__class_fullname__"), str):
            yield name.rpartition(".")[2]
        for value in serialised.values():
            yield from _transform_names(value)
    elif isinstance(serialised, list | tuple):
        for value in serialised:
            yield from _transform_names(value)


def _leaves(composition: Any) -> Iterator[Any]:
    for transform in composition.transforms:
        if isinstance(transform, A.BaseCompose):
            yield from _leaves(transform)
        else:
            yield transform


def _unfit(found: str, expected: str = "") -> ParamsError:
    return ParamsError(
        found, expected=expected, where="augment.file", remedy="mend the pipeline and save it again with A.save"
    )
