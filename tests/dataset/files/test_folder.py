from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from stackseg.dataset.files.inputs import open_input
from stackseg.errors import DataError


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 250, shape).astype(np.uint8)


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as refused:
        open_input(folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_slices_are_planes_in_the_order_people_count(tmp_path: Path) -> None:
    stack_zyx = noise(12, 8, 9)
    for z, plane in enumerate(stack_zyx):
        if z % 2:
            Image.fromarray(plane).save(tmp_path / f"slice{z}.png")
        else:
            tifffile.imwrite(tmp_path / f"slice{z}.tif", plane, imagej=True, metadata={"unit": "um", "spacing": 2})
    for name in ("Thumbs.db", ".DS_Store", "._slice1.png"):
        (tmp_path / name).write_bytes(b"no image")
    with open_input(tmp_path) as stack:
        assert len(stack) == 12
        assert np.array_equal(np.stack([stack.plane(z) for z in range(12)])[..., 0], stack_zyx)
        assert np.array_equal(stack.window(10, slice(2, 5), slice(3, 9))[..., 0], stack_zyx[10, 2:5, 3:])
        info = stack.info
    assert (info.path, info.shape_yx, info.num_channels, info.dtype) == (tmp_path, (8, 9), 1, "uint8")
    assert (info.axes, info.encoding.kind) == ("ZYX", "grey")


@pytest.mark.parametrize("num_planes", [1, 3])
def test_colours_stay_colours(tmp_path: Path, num_planes: int) -> None:
    stack_zyxc = noise(num_planes, 8, 9, 3)
    for z, plane in enumerate(stack_zyxc):
        Image.fromarray(plane).save(tmp_path / f"{z}.png")
    with open_input(tmp_path) as stack:
        assert np.array_equal(np.stack([stack.plane(z) for z in range(num_planes)]), stack_zyxc)
        assert np.array_equal(stack.window(0, slice(2, 5), slice(3, 9)), stack_zyxc[0, 2:5, 3:])
        assert (stack.info.num_channels, stack.info.encoding.kind) == (3, "RGB")


def test_channels_of_each_file(tmp_path: Path) -> None:
    stack_zcyx = noise(3, 2, 8, 9)
    for z, plane in enumerate(stack_zcyx):
        tifffile.imwrite(tmp_path / f"{z}.tif", plane, photometric="minisblack")
    with open_input(tmp_path, axes="CYX") as stack:
        assert np.array_equal(np.stack([stack.plane(z) for z in range(3)]), stack_zcyx.transpose(0, 2, 3, 1))
        assert (stack.info.num_channels, stack.info.encoding.kind) == (2, "channels")


def test_one_voxel_size_or_none(tmp_path: Path) -> None:
    for z, unit in enumerate(("um", "um", "nm")):
        metadata = {"unit": unit, "spacing": 2.0}
        tifffile.imwrite(tmp_path / f"{z}.tif", noise(8, 9), imagej=True, resolution=(4, 4), metadata=metadata)
    info = open_input(tmp_path).info
    assert (info.voxel_size_zyx_um, info.notes) == (None, ("its files name different voxel sizes: none is taken",))
    (tmp_path / "2.tif").unlink()
    assert open_input(tmp_path).info.voxel_size_zyx_um == pytest.approx((2.0, 0.25, 0.25))


def test_files_that_differ_are_both_named(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 9)).save(tmp_path / "a1.png")
    odd = tmp_path / "a10.png"
    for image, said in (
        (noise(7, 9), "7×9 pixels; expected 8×9 pixels"),
        (noise(8, 9).astype(np.uint16), "uint16; expected uint8"),
        (noise(8, 9, 3), "3 channels; expected 1 channels"),
    ):
        Image.fromarray(image).save(odd)
        assert f"{odd}: {said}, as a1.png has" in refusal(tmp_path)
    palette = Image.fromarray(noise(8, 9)).convert("RGB").quantize(5)
    palette.save(odd)
    assert f"{odd}: palette, not grey; expected the same, as a1.png has" in refusal(tmp_path)


def test_what_is_no_slice_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "slices"
    folder.mkdir()
    assert f"{folder}: an empty folder; expected slices" in refusal(folder)
    (folder / ".DS_Store").write_bytes(b"")
    assert f"{folder}: an empty folder; expected slices" in refusal(folder)
    Image.fromarray(noise(8, 9)).save(folder / "1.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "masks").mkdir()
    assert f"{folder}: masks, notes.txt in it: no image; expected nothing but slices" in refusal(folder)
    (folder / "notes.txt").unlink()
    (folder / "masks").rmdir()
    tifffile.imwrite(folder / "stack.tif", noise(4, 8, 9), photometric="minisblack")
    assert f"{folder}/stack.tif: 4 planes; expected one plane in each file of a folder" in refusal(folder)


def test_a_damaged_slice_is_named(tmp_path: Path) -> None:
    for z in range(2):
        tifffile.imwrite(tmp_path / f"{z}.tif", noise(64, 64), compression="zlib")
    with tifffile.TiffFile(tmp_path / "1.tif") as file:
        start = file.pages.first.dataoffsets[0]
    damaged = bytearray((tmp_path / "1.tif").read_bytes())
    damaged[start : start + 100] = bytes(100)
    (tmp_path / "1.tif").write_bytes(damaged)
    with open_input(tmp_path) as stack, pytest.raises(DataError, match=r"1\.tif plane 0: its data cannot be decoded"):
        stack.plane(1)
