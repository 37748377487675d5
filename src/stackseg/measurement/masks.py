"""Masks as planes of whole numbers, and what the numbers mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stackseg.dataset.files.stack import Stack
from stackseg.dataset.labels.codes import pixel_codes, refuse_channels
from stackseg.dataset.labels.table import MAX_CLASSES
from stackseg.errors import DataError
from stackseg.params.data import DataParams

# tab10 of matplotlib
_COLOURS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
)


@dataclass(frozen=True)
class Class:
    """What a value of a mask means."""

    name: str
    colour: str
    """"#rrggbb"."""


def classes_of(data: DataParams) -> list[Class]:
    """Return the classes of a project in the order of their indices."""
    return [Class(one.name, one.display) for one in data.classes]


def unnamed_classes(num_classes: int) -> list[Class]:
    """Return classes named by their indices."""
    return [Class(f"class {index}", _COLOURS[index % len(_COLOURS)]) for index in range(num_classes)]


def class_plane(masks: Stack, z: int, num_classes: int | None) -> npt.NDArray[np.uint8]:
    """Return the class indices (Y, X) of a plane.

    Raises
    ------
    DataError
        A value is no index of a class (of 254 where their number is not known), or the mask holds colours.
    """
    plane_yx = _whole_numbers(masks, z)
    highest = (num_classes or MAX_CLASSES) - 1
    if (wrong := plane_yx[(plane_yx < 0) | (plane_yx > highest)]).size:
        raise DataError(
            f"value {wrong[0]} ({np.sum(wrong == wrong[0])} pixels) is the index of no class",
            expected=f"0 to {highest}, as data.classes has" if num_classes else f"0 to {highest}",
            where=_where(masks, z),
            remedy="name the classes with --classes, or add --objects if each value is an object",
        )
    return plane_yx.astype(np.uint8)


def object_plane(masks: Stack, z: int) -> npt.NDArray[np.integer]:
    """Return the numbers of objects (Y, X) of a plane, 0 for the background.

    Raises
    ------
    DataError
        A value is negative, or the mask holds colours.
    """
    plane_yx = _whole_numbers(masks, z)
    if plane_yx.min() < 0:
        raise DataError(
            f"value {plane_yx.min()}", expected="numbers of objects, 0 for the background", where=_where(masks, z)
        )
    return plane_yx


def _whole_numbers(masks: Stack, z: int) -> npt.NDArray[np.integer]:
    mask_yxc = masks.plane(z)
    if mask_yxc.shape[2] > 1 and not masks.info.encoding.is_colour:
        refuse_channels(mask_yxc, _where(masks, z))
    codes_yx, is_colour = pixel_codes(mask_yxc, _where(masks, z))
    if is_colour:
        raise DataError(
            "a mask of colours",
            expected="class indices or numbers of objects, as `stackseg predict` writes them",
            where=_where(masks, z),
        )
    return codes_yx


def _where(masks: Stack, z: int) -> str:
    return f"{masks.info.path} plane {z}"
