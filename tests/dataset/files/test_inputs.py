from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from stackseg.dataset.files.inputs import open_input
from stackseg.errors import DataError


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 250, shape).astype(np.uint16)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"compression": "zlib", "tile": (16, 16)},
        {"tile": (16, 16)},
        {"compression": "lzw", "rowsperstrip": 8, "predictor": True},
        {"byteorder": ">"},
        {"byteorder": ">", "compression": "zlib", "tile": (16, 32)},
        {"photometric": "rgb"},
        {"photometric": "rgb", "compression": "zlib", "tile": (16, 16)},
        {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib"},
        {"photometric": "rgb", "planarconfig": "separate"},
        {"volumetric": True, "tile": (2, 16, 16), "compression": "zlib"},
    ],
    ids=str,
)
def test_a_window_of_a_tiff_is_a_part_of_its_plane(tmp_path: Path, how: dict[str, Any]) -> None:
    colour = how.get("photometric") == "rgb"
    image = noise(3, 40, 50, 3) if colour else noise(3, 40, 50)
    stored = image.transpose(0, 3, 1, 2) if how.get("planarconfig") == "separate" else image
    tifffile.imwrite(tmp_path / "a.tif", stored, **{"photometric": "minisblack", **how})
    axes = "ZCYX" if how.get("planarconfig") == "separate" else None
    with open_input(tmp_path / "a.tif", axes=axes) as stack:
        expected = image if colour else image[..., None]
        for z, rows, columns in (
            (0, slice(0, 40), slice(0, 50)),
            (2, slice(7, 33), slice(20, 21)),
            (1, slice(39, 40), slice(None)),
        ):
            assert np.array_equal(stack.window(z, rows, columns), expected[z, rows, columns])
        assert np.array_equal(stack.plane(2), expected[2])


@pytest.mark.parametrize("layout", [{"tile": (16, 16)}, {"rowsperstrip": 16}], ids=["tiles", "strips"])
def test_a_window_of_a_tiff_decodes_what_it_touches_only(tmp_path: Path, layout: dict[str, Any]) -> None:
    image = noise(64, 64)
    tifffile.imwrite(tmp_path / "a.tif", image, compression="zlib", **layout)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        last = file.pages.first.dataoffsets[-1]
    damaged = bytearray((tmp_path / "a.tif").read_bytes())
    damaged[last : last + 40] = bytes(40)
    (tmp_path / "a.tif").write_bytes(damaged)
    with open_input(tmp_path / "a.tif") as stack:
        assert np.array_equal(stack.window(0, slice(3, 48), slice(5, 64))[..., 0], image[3:48, 5:])
        with pytest.raises(DataError, match=r"a\.tif plane 0: its data cannot be decoded"):
            stack.window(0, slice(50, 52), slice(60, 64))


def test_a_window_of_absent_tiles_holds_their_value(tmp_path: Path) -> None:
    image = noise(16, 32)
    nodata = [(42113, "s", 0, "9", True)]
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(16, 16), compression="zlib", extratags=nodata)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        for name in ("TileOffsets", "TileByteCounts"):
            tag = file.pages.first.tags[name]
            tag.overwrite((0, tag.value[1]))
    with open_input(tmp_path / "a.tif") as stack:
        assert (stack.plane(0)[:, :16] == 9).all()
        assert (stack.window(0, slice(2, 5), slice(3, 9)) == 9).all()


def test_a_window_of_a_png(tmp_path: Path) -> None:
    image = noise(20, 30)
    Image.fromarray(image).save(tmp_path / "a.png")
    with open_input(tmp_path / "a.png") as stack:
        assert np.array_equal(stack.window(0, slice(2, 9), slice(3, 4))[..., 0], image[2:9, 3:4])


def test_only_a_zarr_has_levels(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(20, 30))
    for path in (tmp_path / "a.tif", tmp_path):
        with pytest.raises(DataError, match="`--level 1`; expected an OME-Zarr image"):
            open_input(path, level=1)
    with pytest.raises(DataError, match="no such file"):
        open_input(tmp_path / "b.tif")
    (tmp_path / "b.zarr").mkdir()
    with pytest.raises(DataError, match="a Zarr whose metadata cannot be read"):
        open_input(tmp_path / "b.zarr")


def test_an_input_is_used_in_another_process_and_after_it_was_closed(tmp_path: Path) -> None:
    image = noise(2, 20, 30)
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("s0", data=image)
    axes = [{"name": one, "type": "space"} for one in "zyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [{"path": "s0"}]}]}
    (tmp_path / "slices").mkdir()
    for z, plane in enumerate(image):
        Image.fromarray(plane).save(tmp_path / f"slices/{z}.png")
    for name in ("a.zarr", "slices"):
        stack = open_input(tmp_path / name)
        stack.close()
        assert np.array_equal(stack.plane(1)[..., 0], image[1])
        assert np.array_equal(pickle.loads(pickle.dumps(stack)).plane(1)[..., 0], image[1])
