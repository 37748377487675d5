from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from ome_zarr.format import FormatV04, FormatV05
from ome_zarr.writer import write_image

from stackseg.dataset.files.inputs import open_input
from stackseg.dataset.files.stack import Stack
from stackseg.errors import DataError

Format = Literal[2, 3]
MICRONS = {"z": "micrometer", "y": "nanometer", "x": "micrometer"}


def noise(*shape: int, dtype: str = "u2") -> np.ndarray:
    values = np.random.default_rng(2).integers(1, 200, shape)
    return values > 100 if dtype == "?" else values.astype(dtype)


def write(
    folder: Path, array: np.ndarray, axes: str, fmt: Format = 3, *, multiscale: Any = None, **how: Any
) -> dict[str, Any]:
    """Write an OME-Zarr image of one level by zarr itself, and return its metadata."""
    group = zarr.open_group(folder, mode="w", zarr_format=fmt)
    group.create_array("0", data=array, **how)
    kinds = {"t": "time", "c": "channel"}
    image = {
        "axes": [{"name": one, "type": kinds.get(one, "space")} for one in axes],
        "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0] * len(axes)}]}],
        **(multiscale or {}),
    }
    set_metadata(folder, image, fmt)
    return image


def set_metadata(folder: Path, image: dict[str, Any], fmt: Format) -> None:
    group = zarr.open_group(folder, mode="r+", zarr_format=fmt)
    if fmt == 2:
        group.attrs["multiscales"] = [{"version": "0.4", **image}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}


def read(stack: Stack) -> np.ndarray:
    planes = [stack.plane(z) for z in range(len(stack))]
    assert all(plane.dtype.isnative and plane.flags.c_contiguous for plane in planes)
    return np.stack(planes)


def as_zyxc(array: np.ndarray, axes: str) -> np.ndarray:
    """Return an array by any axes, of one time point, as (Z, Y, X, C)."""
    for letter in "tczyx":
        if letter not in axes:
            array, axes = array[None], letter + axes
    return array.transpose([axes.index(letter) for letter in "tzyxc"])[0]


@pytest.mark.parametrize("fmt", [FormatV04(), FormatV05()], ids=["0.4", "0.5"])
def test_an_image_that_ome_zarr_wrote(tmp_path: Path, fmt: FormatV04) -> None:
    array = noise(1, 2, 3, 40, 48)
    write_image(
        array,
        str(tmp_path / "a.zarr"),
        scale_factors=[2],
        fmt=fmt,
        axes="tczyx",
        scale={"t": 1.0, "c": 1.0, "z": 0.5, "y": 200.0, "x": 0.25},
        axes_units=MICRONS,
    )
    with open_input(tmp_path / "a.zarr") as stack:
        assert np.array_equal(read(stack), as_zyxc(array, "tczyx"))
        info = stack.info
    assert (info.num_planes, info.shape_yx, info.num_channels, info.dtype) == (3, (40, 48), 2, "uint16")
    assert (info.axes, info.encoding.kind, info.encoding.bits, info.notes) == ("CZYX", "channels", 16, ())
    assert info.voxel_size_zyx_um == pytest.approx((0.5, 0.2, 0.25))
    with open_input(tmp_path / "a.zarr", level=1) as half:
        written = zarr.open_group(tmp_path / "a.zarr", mode="r")
        path = next(one for one, _ in written.arrays() if one.endswith("1"))
        assert np.array_equal(read(half), as_zyxc(np.asarray(written[path]), "tczyx"))
        assert half.info.voxel_size_zyx_um == pytest.approx((0.5, 0.4, 0.5))
    with pytest.raises(DataError, match=r"no level 2; expected 0 to 1: it has 2 levels"):
        open_input(tmp_path / "a.zarr", level=2)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_planes_and_windows_are_those_of_the_array(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    axes = data.draw(st.sampled_from(["yx", "zyx", "cyx", "czyx", "tzyx", "tczyx", "zcyx", "zyxc", "xyz"]))
    largest = {"t": 1, "c": 3, "z": 4, "y": 17, "x": 19}
    shape = [data.draw(st.integers(1, largest[letter]), label=letter) for letter in axes]
    chunks = [data.draw(st.integers(1, size)) for size in shape]
    dtype = data.draw(st.sampled_from(["?", "u1", "i1", ">u2", "i4", "u8", "f2", ">f4", "f8"]))
    fmt: Format = data.draw(st.sampled_from([2, 3]))
    shards = [2 * one for one in chunks] if fmt == 3 and data.draw(st.booleans(), label="sharded") else None
    array = noise(*shape, dtype=dtype)
    folder = tmp_path_factory.mktemp("property") / "image.zarr"
    write(folder, array, axes, fmt, chunks=tuple(chunks), shards=shards and tuple(shards))
    image_zyxc = as_zyxc(array, axes)
    with open_input(folder) as stack:
        whole = read(stack)
        assert whole.dtype == (np.uint8 if dtype == "?" else np.dtype(dtype).newbyteorder("="))
        assert np.array_equal(whole, image_zyxc)
        height, width = stack.info.shape_yx
        assert whole.shape == (stack.info.num_planes, height, width, stack.info.num_channels)
        assert stack.info.dtype == np.dtype(dtype).name
        assert dtype == "?" or not stack.info.notes  # zarr writes no chunk that is false all over
        rows, columns = (slice(*sorted((data.draw(st.integers(0, n)), n))) for n in (height - 1, width - 1))
        z = len(stack) - 1
        assert np.array_equal(stack.window(z, rows, columns), image_zyxc[z, rows, columns])
    shutil.rmtree(folder)


@pytest.mark.parametrize("fmt", [2, 3])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_window_reads_the_chunks_it_touches_and_no_other(tmp_path: Path, fmt: Format, sharded: bool) -> None:
    if sharded and fmt == 2:
        pytest.skip("zarr v2 knows no shards")
    array = noise(2, 64, 64)
    write(tmp_path / "a", array, "zyx", fmt, chunks=(1, 16, 16), shards=(1, 32, 32) if sharded else None)
    last = {(2, False): "1.3.3", (3, False): "c/1/3/3", (3, True): "c/1/1/1"}[fmt, sharded]
    chunk = tmp_path / "a/0" / last
    if not chunk.exists():
        chunk = tmp_path / "a/0" / last.replace(".", "/")
    chunk.write_bytes(b"damaged")
    with open_input(tmp_path / "a") as stack:
        assert np.array_equal(stack.window(1, slice(10, 32), slice(5, 32))[..., 0], array[1, 10:32, 5:32])
        assert np.array_equal(stack.plane(0)[..., 0], array[0])
        with pytest.raises(
            DataError, match=r"a plane 1: its data cannot be decoded .* Copy or export the file|corrupt"
        ):
            stack.window(1, slice(40, 64), slice(40, 64))
        with pytest.raises(DataError, match="plane 1: its data cannot be decoded"):
            stack.plane(1)


@pytest.mark.parametrize("fmt", [2, 3])
def test_the_scale_of_the_level_times_that_of_the_image_in_the_unit_of_each_axis(tmp_path: Path, fmt: Format) -> None:
    image = write(tmp_path / "a", noise(2, 3, 8, 9), "czyx", fmt)
    image["axes"] = [{"name": one, **({"unit": MICRONS[one]} if one in MICRONS else {})} for one in "czyx"]
    image["datasets"][0]["coordinateTransformations"] = [
        {"type": "scale", "scale": [1, 2.0, 300, 0.5]},
        {"type": "translation", "translation": [0, 9, 9, 9]},
    ]
    image["coordinateTransformations"] = [{"type": "scale", "scale": [7, 3, 2, 0.5]}]
    set_metadata(tmp_path / "a", image, fmt)
    assert open_input(tmp_path / "a").info.voxel_size_zyx_um == pytest.approx((6.0, 0.6, 0.25))
    del image["axes"][1]["unit"]
    set_metadata(tmp_path / "a", image, fmt)
    assert open_input(tmp_path / "a").info.voxel_size_zyx_um == (None, pytest.approx(0.6), 0.25)
    image["datasets"][0]["coordinateTransformations"][0]["scale"] = [1, 2]
    set_metadata(tmp_path / "a", image, fmt)
    with pytest.raises(DataError, match=r"its scale is \[1, 2\] for 4 axes"):
        open_input(tmp_path / "a")


def test_no_unit_says_nothing_of_the_voxel_size(tmp_path: Path) -> None:
    write(tmp_path / "a", noise(3, 8, 9), "zyx")
    assert open_input(tmp_path / "a").info.voxel_size_zyx_um is None


def test_time_is_refused_unless_the_axes_are_given(tmp_path: Path) -> None:
    array = noise(3, 8, 9)
    write(tmp_path / "a", array, "tyx")
    with pytest.raises(DataError, match=r"its axes are t=3, y=8, x=9: a series in time; expected one .*--axes ZYX"):
        open_input(tmp_path / "a")
    with open_input(tmp_path / "a", axes="ZYX") as stack:
        assert np.array_equal(read(stack)[..., 0], array)


def test_axes_without_a_meaning_are_refused_unless_they_are_given(tmp_path: Path) -> None:
    array = noise(4, 8, 9)
    write(tmp_path / "a", array, "ayx")
    with pytest.raises(DataError, match=r"its axes are a=4, y=8, x=9: what is a\?; expected .*--axes ZYX"):
        open_input(tmp_path / "a")
    with open_input(tmp_path / "a", axes="YXC") as stack:
        assert np.array_equal(stack.plane(0), array)
        assert np.array_equal(stack.window(0, slice(1, 3), slice(2, 5)), array[1:3, 2:5])


def test_absent_chunks_are_told_and_empty_ones_refused(tmp_path: Path) -> None:
    array = noise(2, 32, 32)
    write(tmp_path / "a", array, "zyx", chunks=(1, 16, 16), fill_value=7)
    (tmp_path / "a/0/c/1/0/1").unlink()
    with open_input(tmp_path / "a") as stack:
        assert stack.info.notes == ("1 of 8 chunks are not there, read as 7",)
        assert (stack.plane(1)[:16, 16:] == 7).all()
    (tmp_path / "a/0/c/1/0/0").write_bytes(b"")  # in shards, zarr takes this for an absent one, too
    with pytest.raises(DataError, match=r"0/c/1/0/0 is an empty file \(0 bytes\)\. Copy"):
        open_input(tmp_path / "a")


def test_not_a_number_is_refused_where_it_is_read(tmp_path: Path) -> None:
    array = noise(2, 8, 8, dtype="f4")
    array[1, 2, 3] = np.nan
    write(tmp_path / "a", array, "zyx")
    with open_input(tmp_path / "a") as stack:
        assert np.array_equal(stack.window(1, slice(4, 8), slice(0, 8))[..., 0], array[1, 4:])
        with pytest.raises(DataError, match="a plane 1: 1 of 64 pixels are NaN"):
            stack.plane(1)


class TestNoImage:
    """What is no image of its own is refused, and the image to name is told."""

    def refusal(self, folder: Path) -> str:
        with pytest.raises(DataError) as refused:
            open_input(folder)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    @pytest.mark.parametrize("fmt", [2, 3])
    def test_series_of_bioformats2raw(self, tmp_path: Path, fmt: Format) -> None:
        root = tmp_path / "a.zarr"
        group = zarr.open_group(root, mode="w", zarr_format=fmt)
        layout = {"bioformats2raw.layout": 3}
        group.attrs.update(layout if fmt == 2 else {"ome": {"version": "0.5", **layout}})
        for series in ("0", "1", "10", "2", "3"):
            write(root / series, noise(8, 8), "yx", fmt)
        said = self.refusal(root)
        assert "a Zarr of several images, as bioformats2raw writes it; expected one OME-Zarr image" in said
        assert said.endswith(f"Name the image that you mean: `{root}/0`, `{root}/1`, `{root}/2`, `{root}/3`, …")
        assert len(open_input(root / "0")) == 1

    def test_a_plate_and_a_well(self, tmp_path: Path) -> None:
        root = tmp_path / "a.zarr"
        zarr.open_group(root, mode="w").attrs["ome"] = {"version": "0.5", "plate": {"wells": [{"path": "A/1"}]}}
        zarr.open_group(root / "A/1", mode="w").attrs["ome"] = {"version": "0.5", "well": {"images": [{"path": "0"}]}}
        write(root / "A/1/0", noise(8, 8), "yx")
        assert self.refusal(root).endswith(
            f"a plate of wells; expected one OME-Zarr image. Name the image that you mean: `{root}/A/1/0`"
        )
        assert f"a well of a plate; expected one OME-Zarr image. Name the image that you mean: `{root}/A/1/0`" in (
            self.refusal(root / "A/1")
        )

    def test_a_group_without_multiscales_and_an_array(self, tmp_path: Path) -> None:
        zarr.open_group(tmp_path / "a", mode="w").create_array("0", data=noise(8, 8))
        assert "a: a Zarr group without multiscales; expected an OME-Zarr image" in self.refusal(tmp_path / "a")
        assert "a Zarr array, which does not say what its axes are" in self.refusal(tmp_path / "a/0")

    def test_other_versions(self, tmp_path: Path) -> None:
        write(tmp_path / "a", noise(8, 8), "yx", 2, multiscale={"version": "0.2"})
        assert "OME-Zarr of version 0.2; expected version 0.4 or 0.5" in self.refusal(tmp_path / "a")

    def test_damaged_metadata(self, tmp_path: Path) -> None:
        folder = tmp_path / "a.zarr"
        image = write(folder, noise(3, 8, 8), "zyx")
        for change, said in (
            ({"datasets": []}, "its datasets are [], not a list"),
            ({"datasets": [{"path": "5"}]}, "its array 5 cannot be opened"),
            ({"datasets": [{"path": "../b"}]}, "its array ../b cannot be opened"),
            ({"axes": image["axes"][1:]}, "its metadata name 2 axes, and level 0 has 3"),
            ({"axes": "zyx"}, "its axes are 'zyx', not a list"),
        ):
            set_metadata(folder, {**image, **change}, 3)
            assert said in self.refusal(folder)
        set_metadata(folder, image, 3)
        metadata = json.loads((folder / "0/zarr.json").read_text())
        (folder / "0/zarr.json").write_text(json.dumps({**metadata, "data_type": "complex64", "fill_value": [0, 0]}))
        assert "an array of complex64 and shape (3, 8, 8); expected pixels" in self.refusal(folder)
        (folder / "zarr.json").write_text('{"zarr_format": 3,')
        assert "a Zarr whose metadata cannot be read" in self.refusal(folder)
        (folder / "zarr.json").unlink()
        assert "a Zarr whose metadata cannot be read" in self.refusal(folder)
