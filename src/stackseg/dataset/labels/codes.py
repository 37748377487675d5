"""Raw codes of masks: integers of grey and palette masks, colours of RGB masks, and how pixels become codes.

A colour is "#rrggbb". In masks whose alpha varies, pixels that are not opaque have codes "#rrggbbaa", fully transparent
ones "#00000000" whatever their colour.
"""

from __future__ import annotations

import re
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from stackseg.errors import DataError

RawCode = int | str

COLOUR = re.compile(r"#[0-9a-fA-F]{6}([0-9a-fA-F]{2})?")


def raw_counts(mask_yxc: npt.NDArray[np.generic], *, where: str = "") -> dict[RawCode, int]:
    """Return how many pixels of a raw mask (Y, X, C) have which code, in rising order of codes.

    Raises
    ------
    DataError
        The mask is of a kind that holds no labels; `where` names it.
    """
    coded_yx, is_colour = pixel_codes(mask_yxc, where)
    values, numbers = np.unique(coded_yx, return_counts=True)
    return {code_of(value, is_colour): number for value, number in zip(values.tolist(), numbers.tolist(), strict=True)}


def pixel_codes(mask_yxc: npt.NDArray[np.generic], where: str) -> tuple[npt.NDArray[np.integer], bool]:
    """Return one integer per pixel (Y, X), and whether it is a packed colour 0xrrggbbaa."""
    num_channels, dtype = mask_yxc.shape[2], mask_yxc.dtype
    if num_channels == 1:
        return _integers(mask_yxc[:, :, 0], where), False
    if num_channels not in (3, 4) or dtype != np.uint8:
        raise DataError(
            f"a mask with {num_channels} channels of {dtype}",
            expected="one channel, or RGB(A) of uint8",
            where=where,
            remedy="save the labels as one grey value or one 8-bit colour per class",
        )
    if num_channels == 4 and is_one_hot(mask_yxc):
        refuse_channels(mask_yxc, where)  # exporters of channels often call any four of them RGBA
    red_yx, green_yx, blue_yx = (mask_yxc[:, :, channel].astype(np.uint32) for channel in range(3))
    coded_yx = (red_yx << 24) | (green_yx << 16) | (blue_yx << 8) | 255
    if num_channels == 4:
        alpha_yx = mask_yxc[:, :, 3].astype(np.uint32)
        coded_yx = np.where(alpha_yx > 0, coded_yx & 0xFFFFFF00 | alpha_yx, np.uint32(0))
    return coded_yx, True


def is_one_hot(mask_yxc: npt.NDArray[np.generic]) -> bool:
    """Tell whether exactly one channel is set at each pixel, and more than one channel somewhere."""
    set_yxc = mask_yxc != 0
    return bool((set_yxc.sum(axis=2) == 1).all() and set_yxc.any(axis=(0, 1)).sum() > 1)


def refuse_channels(mask_yxc: npt.NDArray[np.generic], where: str) -> NoReturn:
    """Raise DataError for a mask (Y, X, C) of channels that are no colours."""
    found, remedy = "", "keep the channel that holds the labels, or save the colours as RGB"
    if is_one_hot(mask_yxc):
        found = ", one of which is set at each pixel (one-hot)"
        remedy = "save the number of the channel that is set as one grey value, such as `mask.argmax(axis=channel)`"
    raise DataError(
        f"a mask of {mask_yxc.shape[2]} channels{found}",
        expected="one channel of labels, or RGB(A) colours that the file calls so",
        where=where,
        remedy=remedy,
    )


def _integers(mask_yx: npt.NDArray[np.generic], where: str) -> npt.NDArray[np.integer]:
    if mask_yx.dtype.kind in "iu":
        if mask_yx.dtype == np.uint64 and mask_yx.max() >= 2**63:
            raise DataError(
                f"a mask with the value {mask_yx.max()}",
                expected="values below 2^63",
                where=where,
                remedy="save the labels as 8-bit or 16-bit integers",
            )
        return np.asarray(mask_yx, np.int64 if mask_yx.dtype == np.uint64 else mask_yx.dtype)
    values_yx = mask_yx.astype(np.float64)
    whole_yx = (np.abs(values_yx) < 2**53) & (np.rint(values_yx) == values_yx)  # false for NaN
    if num_broken := int(np.sum(~whole_yx)):
        raise DataError(
            f"a floating-point mask whose values are no whole numbers on {num_broken} pixels",
            expected="a whole number per class",
            where=where,
            remedy="export the labels as integers, not as probabilities",
        )
    return values_yx.astype(np.int64)


def code_number(code: RawCode) -> tuple[int, bool]:
    """Return a code as the integer that `pixel_codes` gives its pixels, and whether it is a colour."""
    if isinstance(code, str):
        number = int(code[1:].ljust(8, "f"), 16)
        return (number if number & 255 else 0), True
    return code, False


def code_of(number: int, is_colour: bool) -> RawCode:
    """Return the code of a pixel's integer, the other way round."""
    return f"#{number:08x}".removesuffix("ff") if is_colour else number
