"""Files of one set speak one language, or two of them are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from stackseg.dataset.agreement import fitting_colour, require_agreement
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
        require_agreement(found, policy)


def test_grey_beside_rgb_where_the_policy_converts(tmp_path: Path) -> None:
    found = find_specimens(data(tmp_path, [GREY, RGB], [GREY] * 2))
    for policy in ("grey", "rgb"):
        require_agreement(found, policy)
    with pytest.raises(DataError, match=r"b\.tif: 3 channels; expected 1, as .*a\.tif has"):
        require_agreement(found, "keep")


@pytest.mark.parametrize("stacks", [False, True])
@pytest.mark.parametrize(("one", "other"), [(RED_PALETTE, GREEN_PALETTE), (GREY, INVERTED)])
def test_one_code_with_two_meanings_is_refused_over_all_specimens(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], stacks: bool
) -> None:
    found = find_specimens(data(tmp_path, [GREY] * 3, [one, one, other], stacks=stacks))
    with pytest.raises(DataError, match=r"c[/\w]*\.tif: .*as .*a[/\w]*\.tif has.*RGB"):
        require_agreement(found, "keep")


def test_masks_of_one_specimen_are_of_one_kind_and_specimens_may_differ(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b\.tif: RGB; expected grey, as .*a\.tif has"):
        require_agreement(find_specimens(data(tmp_path / "files", [GREY] * 2, [GREY, RGB])), "keep")
    require_agreement(find_specimens(data(tmp_path / "stacks", [GREY] * 2, [GREY, RGB], stacks=True)), "keep")
    require_agreement(find_specimens(data(tmp_path / "same", [GREY] * 2, [RED_PALETTE] * 2)), "keep")


@pytest.mark.parametrize(
    ("colour", "other", "told"),
    [
        ("keep", np.zeros((5, 6, 3), np.uint8), r"2\.tif: 3 channels; expected 1, as .*1\.tif has. Set data\.colour"),
        ("grey", np.zeros((5, 6, 3), np.uint8), ""),
        ("rgb", np.zeros((5, 6, 3), np.uint8), ""),
        ("keep", np.zeros((5, 6), np.uint16), r"2\.tif: pixels of type uint16; expected uint8, as .*1\.tif has"),
        ("grey", np.zeros((5, 6), np.uint16), r"2\.tif: pixels of type uint16; expected uint8"),
        ("rgb", np.zeros((2, 5, 6), np.uint8), r"2\.tif: 2 channels; expected 1 or 3, for data\.colour is rgb"),
    ],
)
def test_images_of_another_kind_are_refused(tmp_path: Path, colour: Any, other: Any, told: str) -> None:
    for name, image in (("1", np.zeros((5, 6), np.uint8)), ("2", other)):
        rgb = image.shape[-1] == 3
        axes = "YXS" if rgb else "CYX"[-image.ndim :]
        for kind, pixels in (("images", image), ("masks", np.zeros((5, 6), np.uint8))):
            path = tmp_path / "a" / kind / f"{name}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            coloured = rgb and kind == "images"
            meant = {"axes": axes if kind == "images" else "YX"}
            tifffile.imwrite(path, pixels, photometric="rgb" if coloured else "minisblack", metadata=meant)
    specimens = find_specimens(tmp_path)
    if not told:
        require_agreement(specimens, colour)
        return
    with pytest.raises(DataError, match=told):
        require_agreement(specimens, colour)


def test_grey_beside_rgb_is_brought_to_grey_where_nothing_was_chosen(tmp_path: Path) -> None:
    (mixed,) = find_specimens(data(tmp_path / "mixed", [GREY, RGB], [GREY] * 2))
    (alike,) = find_specimens(data(tmp_path / "alike", [RGB, RGB], [GREY] * 2))
    assert [fitting_colour(mixed, policy) for policy in ("keep", "grey", "rgb")] == ["grey", "grey", "rgb"]
    assert fitting_colour(alike, "keep") == "keep"
