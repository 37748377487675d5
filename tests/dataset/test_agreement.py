"""Files of one set speak one language, or two of them are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from stackseg.dataset.agreement import require_one_coding
from stackseg.dataset.channels import ColourPolicy
from stackseg.dataset.specimens import find_specimens
from stackseg.errors import DataError

VALUES_YX = (np.arange(16 * 16).reshape(16, 16) % 2).astype(np.uint8)
LUT = np.zeros((3, 256), np.uint16)
RED, GREEN = LUT.copy(), LUT.copy()
RED[0, 1] = GREEN[1, 1] = 65535
GREY = {"photometric": "minisblack"}
INVERTED = {"photometric": "miniswhite"}
RED_PALETTE, GREEN_PALETTE = ({"photometric": "palette", "colormap": one} for one in (RED, GREEN))
COLOURS_YXC, RGB = np.repeat(VALUES_YX[..., None] * 255, 3, axis=2), {"photometric": "rgb"}


def write(path: Path, options: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = COLOURS_YXC if options["photometric"] == "rgb" else VALUES_YX
    tifffile.imwrite(path, pixels, metadata=None, **options)


def data(folder: Path, images: list[dict[str, Any]], masks: list[dict[str, Any]], *, stacks: bool = False) -> Path:
    """Write pairs as the files of one specimen, or as a specimen each."""
    for name, image, mask in zip("abc", images, masks, strict=False):
        places = (f"{name}/images", f"{name}/masks") if stacks else (f"set/images/{name}", f"set/masks/{name}")
        for place, options in zip(places, (image, mask), strict=True):
            write(folder / f"{place}.tif", options)
    return folder


@pytest.mark.parametrize("stacks", [False, True])
@pytest.mark.parametrize("policy", ["keep", "grey", "rgb"])
@pytest.mark.parametrize("odd", [INVERTED, RED_PALETTE, {**GREY, "bitspersample": 4, "compression": "packints"}])
def test_an_image_that_codes_its_pixels_otherwise_is_named(
    tmp_path: Path, odd: dict[str, Any], policy: ColourPolicy, stacks: bool
) -> None:
    if "bitspersample" in odd:
        odd = {"photometric": "minisblack", "bitspersample": 7}
    found = find_specimens(data(tmp_path, [GREY, GREY, odd], [GREY] * 3, stacks=stacks))
    with pytest.raises(DataError, match=r"c[/\w]*\.tif: .*as .*a[/\w]*\.tif has"):
        require_one_coding(found, policy)


def test_grey_beside_rgb_where_the_policy_converts(tmp_path: Path) -> None:
    found = find_specimens(data(tmp_path, [GREY, RGB], [GREY] * 2))
    for policy in ("grey", "rgb"):
        require_one_coding(found, policy)
    with pytest.raises(DataError, match=r"b\.tif: RGB; expected grey, as .*a\.tif has"):
        require_one_coding(found, "keep")


@pytest.mark.parametrize("stacks", [False, True])
@pytest.mark.parametrize(("one", "other"), [(RED_PALETTE, GREEN_PALETTE), (GREY, INVERTED)])
def test_one_code_with_two_meanings_is_refused_over_all_specimens(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], stacks: bool
) -> None:
    found = find_specimens(data(tmp_path, [GREY] * 3, [one, one, other], stacks=stacks))
    with pytest.raises(DataError, match=r"c[/\w]*\.tif: .*as .*a[/\w]*\.tif has.*RGB"):
        require_one_coding(found, "keep")


def test_masks_of_one_specimen_are_of_one_kind_and_specimens_may_differ(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b\.tif: RGB; expected grey, as .*a\.tif has"):
        require_one_coding(find_specimens(data(tmp_path / "files", [GREY] * 2, [GREY, RGB])), "keep")
    require_one_coding(find_specimens(data(tmp_path / "stacks", [GREY] * 2, [GREY, RGB], stacks=True)), "keep")
    require_one_coding(find_specimens(data(tmp_path / "same", [GREY] * 2, [RED_PALETTE] * 2)), "keep")
