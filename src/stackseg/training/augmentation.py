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
from albumentations.core.type_definitions import Targets
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stackseg.errors import ParamsError
from stackseg.training.augmentation_ops import (
    FieldYX,
    ImageYXC,
    IntensityStrength,
    MaskYX,
    WarpStrength,
    resample_image,
    resample_mask,
    vary_intensity,
    warp_maps,
)

Augmentation = Callable[[ImageYXC, MaskYX, int], tuple[ImageYXC, MaskYX]]

PRESETS = ("none", "light", "em", "micrograph")
# Standardised intensities that a pipeline from a file sees as 0 and 1, the darkest and brightest of a photograph.
FILE_RANGE = (-2.5, 2.5)
# They expect raw intensities, or give something other than an image.
UNFIT = ("Normalize", "ToFloat", "FromFloat", "ToTensorV2", "ToTensor3D")


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


def build_augmentation(
    preset: str,
    *,
    file: str | Path | None = None,
    serialised: Mapping[str, Any] | None = None,
    ignore_index: int = 255,
) -> Augmentation:
    """Return ``augment(image_yxc, mask_yx, seed)``, which varies a standardised float32 patch and its mask alike.

    The result depends on the patch and the seed alone, so it is the same in any worker. Shapes and types stay.

    Parameters
    ----------
    preset
        ``none``: nothing. ``light``: flips, turns by 90°, slight changes of contrast and brightness. ``em``: also
        elastic bending, stronger changes, blur and noise. ``micrograph``: also turns by any angle, zoom, uneven
        illumination. Not read when a pipeline is given.
    file, serialised
        A pipeline of albumentations, as a file or as what :func:`load_pipeline` returns. It sees the standardised
        range -2.5..2.5 (or the patch's own where that is wider) as 0..1, and is mapped back. Masks are resampled by
        nearest neighbour, and pixels that it draws in from outside the patch get ``ignore_index``.

    Raises
    ------
    ParamsError
        Unknown preset, or a pipeline that cannot be used; while augmenting, too.
    """
    if file is not None:
        serialised = load_pipeline(file)
    if serialised is not None:
        return _FilePipeline(_compose(serialised, ignore_index))
    if preset not in PRESETS:
        raise ParamsError(f"unknown preset '{preset}'", expected=f"one of {', '.join(PRESETS)}", where="augment.preset")
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
        text = Path(path).read_text(encoding="utf-8")
        serialised = json.loads(text) if Path(path).suffix.lower() == ".json" else YAML(typ="safe").load(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, YAMLError) as error:
        raise _unfit(f"{path} cannot be read ({error})") from error
    if not isinstance(serialised, dict) or not isinstance(serialised.get("transform"), dict):
        raise _unfit(f"{path} is not a pipeline of albumentations", expected="what its A.save writes, JSON or YAML")
    _compose(serialised, ignore_index=255)
    return serialised


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


def _compose(serialised: Mapping[str, Any], ignore_index: int) -> Any:
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
            transform.fill_mask = ignore_index
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
