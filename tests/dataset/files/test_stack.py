from __future__ import annotations

import multiprocessing
import os
import pickle
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from stackseg.dataset.files.stack import Stack, check_finite, open_stack
from stackseg.errors import DataError

REAL = Path(__file__).parents[4] / "shared" / "data"
real_data = pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is not here")


def noise(*shape: int, dtype: str = "u2") -> np.ndarray:
    values = np.random.default_rng(1).integers(0, 250, shape)
    return (values > 120) if dtype == "?" else (values / 8).astype(dtype) if dtype[0] == "f" else values.astype(dtype)


def read(path: Path, **options: Any) -> np.ndarray:
    """The whole file as (Z, Y, X, C), plane by plane."""
    with open_stack(path, **options) as stack:
        planes = [stack.plane(z) for z in range(len(stack))]
        assert all(plane.dtype.isnative and plane.flags.c_contiguous for plane in planes)
        assert planes[0].shape == (*stack.info.shape_yx, stack.info.num_channels)
        return np.stack(planes)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4", "?", "i1", "u4", "f8", "f2"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_types_byte_orders_and_bigtiff(tmp_path: Path, dtype: str, byteorder: str, bigtiff: bool) -> None:
    stack_zyx = noise(5, 24, 20, dtype=dtype)
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, stack_zyx, byteorder=byteorder, bigtiff=bigtiff, metadata=None)
    assert np.array_equal(read(path)[..., 0], stack_zyx)
    info = open_stack(path).info
    assert (info.axes, info.num_planes, info.shape_yx, info.num_channels) == ("ZYX", 5, (24, 20), 1)
    assert info.dtype == np.dtype(dtype).name
    assert info.voxel_size_zyx_um is None


@pytest.mark.parametrize(
    ("compression", "predictor"),
    [
        (None, False),
        ("packbits", False),
        *((codec, on) for codec in ("deflate", "lzw", "zstd") for on in (False, True)),
    ],
)
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 7}, {"tile": (16, 32)}])
def test_compressions_predictors_strips_and_tiles(
    tmp_path: Path, compression: str | None, predictor: bool, dtype: str, layout: dict[str, Any]
) -> None:
    stack_zyx = noise(3, 40, 50, dtype=dtype)
    path = tmp_path / "s.tif"
    tifffile.imwrite(
        path,
        stack_zyx,
        compression=compression,
        predictor=predictor,
        photometric="minisblack",
        metadata=None,
        **layout,
    )
    assert np.array_equal(read(path)[..., 0], stack_zyx)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_rgb_contiguous_and_planar(tmp_path: Path, planar: str, dtype: str) -> None:
    stack_zyxc = noise(4, 24, 20, 3, dtype=dtype)
    path = tmp_path / "s.tif"
    data = stack_zyxc if planar == "contig" else np.moveaxis(stack_zyxc, 3, 1)
    tifffile.imwrite(path, data, photometric="rgb", planarconfig=planar, compression="lzw", software="other")
    assert np.array_equal(read(path), stack_zyxc)
    assert open_stack(path).info.axes == ("ZYXS" if planar == "contig" else "ZSYX")


@pytest.mark.parametrize(
    ("bits", "stored"), [(2, np.arange(4)), (4, np.arange(16)), (10, np.arange(1024)), (12, np.arange(4096))]
)
def test_packed_integers(tmp_path: Path, bits: int, stored: np.ndarray) -> None:
    page_yx = np.random.default_rng(0).permutation(np.resize(stored, 1024)).reshape(32, 32)
    page_yx = page_yx.astype(np.uint8 if bits <= 8 else np.uint16)
    tifffile.imwrite(tmp_path / "s.tif", page_yx, bitspersample=bits)
    assert np.array_equal(read(tmp_path / "s.tif")[0, ..., 0], page_yx)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_one_bit_values_are_as_stored_whatever_is_drawn_white(tmp_path: Path, photometric: str) -> None:
    mask_yx = noise(30, 21, dtype="?")
    path = tmp_path / "mask.tif"
    tifffile.imwrite(path, mask_yx, photometric=photometric)
    plane_yxc = open_stack(path).plane(0)
    assert plane_yxc.dtype == np.uint8
    assert np.array_equal(plane_yxc[..., 0], mask_yx.astype(np.uint8))
    info = open_stack(path).info
    assert info.dtype == "bool"
    assert any("MinIsWhite" in note for note in info.notes) == (photometric == "miniswhite")


def test_palette_gives_indices(tmp_path: Path) -> None:
    indices_yx = noise(20, 20, dtype="u1") % 5
    colours = np.random.default_rng(0).integers(0, 65535, (3, 256)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "p.tif", indices_yx, photometric="palette", colormap=colours)
    stack = open_stack(tmp_path / "p.tif")
    assert "palette image" in stack.info.notes[0]
    assert np.array_equal(stack.plane(0)[..., 0], indices_yx)


def test_jpeg_is_read_and_said(tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :64]
    smooth_yx = (100 + y + x).astype(np.uint8)
    tifffile.imwrite(tmp_path / "j.tif", smooth_yx, compression="jpeg", compressionargs={"level": 95})
    stack = open_stack(tmp_path / "j.tif")
    assert np.abs(stack.plane(0)[..., 0].astype(int) - smooth_yx).max() <= 3
    assert stack.info.notes == ("JPEG-compressed: values are not exact",)


class TestImageJ:
    @pytest.mark.parametrize("byteorder", ["<", ">"])
    def test_hyperstack_with_voxel_size(self, tmp_path: Path, byteorder: str) -> None:
        stack_zcyx = noise(5, 2, 24, 20)
        path = tmp_path / "h.tif"
        metadata = {"spacing": 2.5, "unit": "micron"}
        with tifffile.TiffWriter(path, imagej=True, byteorder=byteorder) as writer:
            writer.write(stack_zcyx, resolution=(2.0, 4.0), metadata=metadata)
        assert np.array_equal(read(path), np.moveaxis(stack_zcyx, 1, 3))
        info = open_stack(path).info
        assert info.axes == "ZCYX"
        assert info.voxel_size_zyx_um == pytest.approx((2.5, 0.25, 0.5))

    def test_contiguous_data_behind_a_single_page_header(self, tmp_path: Path) -> None:
        stack_zyx = noise(6, 24, 20)
        path = tmp_path / "h.tif"
        tifffile.imwrite(path, stack_zyx, imagej=True, byteorder=">", metadata={"axes": "ZYX"})
        with tifffile.TiffFile(path) as tiff:
            first = tiff.pages.first
            link = first.offset + 2 + 12 * len(first.tags)
        raw = bytearray(path.read_bytes())
        raw[link : link + 4] = struct.pack(">I", 0)  # as ImageJ writes what exceeds 4 GB: one header, all data
        path.write_bytes(raw)
        with tifffile.TiffFile(path) as tiff:
            assert len(tiff.pages) == 1
        assert np.array_equal(read(path)[..., 0], stack_zyx)

    @pytest.mark.parametrize(
        ("unit", "expected"),
        [
            ("\\u00B5m", (2.0, 0.5, 0.5)),
            ("nm", (0.002, 0.0005, 0.0005)),
            ("mm", (2000.0, 500.0, 500.0)),
            ("pixel", None),
            ("inch", None),
        ],
    )
    def test_units(self, tmp_path: Path, unit: str, expected: tuple[float, ...] | None) -> None:
        path = tmp_path / "u.tif"
        tifffile.imwrite(
            path, noise(3, 8, 8), imagej=True, resolution=(2, 2), metadata={"axes": "ZYX", "spacing": 2.0, "unit": unit}
        )
        size = open_stack(path).info.voxel_size_zyx_um
        assert size == (None if expected is None else pytest.approx(expected))

    def test_time_series_is_refused_until_axes_are_told(self, tmp_path: Path) -> None:
        stack_tyx = noise(5, 24, 20)
        path = tmp_path / "t.tif"
        tifffile.imwrite(path, stack_tyx, imagej=True, metadata={"axes": "TYX"})
        with pytest.raises(DataError, match=r"T is time.*`--axes ZYX`"):
            open_stack(path)
        assert np.array_equal(read(path, axes="ZYX")[..., 0], stack_tyx)


class TestOme:
    def test_axes_and_voxel_size(self, tmp_path: Path) -> None:
        stack_czyx = noise(2, 5, 24, 20)
        path = tmp_path / "o.ome.tif"
        metadata = {
            "axes": "CZYX",
            "PhysicalSizeX": 250.0,
            "PhysicalSizeXUnit": "nm",
            "PhysicalSizeY": 0.5,
            "PhysicalSizeZ": 2.0,
        }
        tifffile.imwrite(path, stack_czyx, metadata=metadata, compression="zstd", tile=(16, 16))
        assert np.array_equal(read(path), np.moveaxis(stack_czyx, 0, 3))
        assert open_stack(path).info.axes == "CZYX"
        assert open_stack(path).info.voxel_size_zyx_um == pytest.approx((2.0, 0.5, 0.25))

    def test_pyramid_is_read_at_full_size(self, tmp_path: Path) -> None:
        stack_zyx = noise(3, 64, 64)
        with tifffile.TiffWriter(tmp_path / "p.ome.tif") as writer:
            writer.write(stack_zyx, subifds=1, metadata={"axes": "ZYX"}, tile=(16, 16), photometric="minisblack")
            writer.write(stack_zyx[:, ::2, ::2], subfiletype=1, tile=(16, 16), photometric="minisblack")
        assert np.array_equal(read(tmp_path / "p.ome.tif")[..., 0], stack_zyx)

    def test_several_files_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.ome.tif"
        tifffile.imwrite(path, noise(2, 16, 16), metadata={"axes": "ZYX"}, ome=True, photometric="minisblack")
        with tifffile.TiffFile(path) as tiff:
            xml = tiff.ome_metadata
        assert xml is not None
        tiff_data = '<TiffData IFD="0" PlaneCount="1"/>'
        other = '<TiffData FirstZ="1"><UUID FileName="b.ome.tif">urn:uuid:b</UUID></TiffData>'
        start, end = xml.index("<TiffData"), xml.index("</Pixels>")
        tifffile.imwrite(tmp_path / "b.ome.tif", noise(16, 16), metadata=None)
        tifffile.imwrite(path, noise(16, 16), metadata=None, description=(xml[:start] + tiff_data + other + xml[end:]))
        with pytest.raises(DataError, match="several files"):
            open_stack(path)


class TestAlpha:
    def write(self, path: Path, stack_zyxc: np.ndarray, **options: Any) -> Path:
        tifffile.imwrite(path, stack_zyxc, photometric="rgb", software="other", metadata={"axes": "ZYXS"}, **options)
        return path

    @pytest.mark.parametrize("value", [0, 77, 255])
    def test_constant_alpha_is_dropped_and_said(self, tmp_path: Path, value: int) -> None:
        stack_zyxc = noise(4, 20, 20, 4, dtype="u1")
        stack_zyxc[..., 3] = value
        path = self.write(tmp_path / "a.tif", stack_zyxc, extrasamples=["unassalpha"])
        assert np.array_equal(read(path), stack_zyxc[..., :3])
        assert open_stack(path).info.notes == (f"constant alpha channel ({value}) dropped",)

    def test_alpha_that_varies_on_the_last_plane_only_is_kept(self, tmp_path: Path) -> None:
        stack_zyxc = noise(4, 20, 20, 4, dtype="u1")
        stack_zyxc[..., 3] = 255
        stack_zyxc[3, 7, 7, 3] = 254
        path = self.write(tmp_path / "a.tif", stack_zyxc, extrasamples=["unassalpha"])
        assert np.array_equal(read(path), stack_zyxc)
        assert "alpha varies (plane 3)" in open_stack(path).info.notes[0]

    @pytest.mark.parametrize(("value", "num_channels"), [(255, 3), (0, 4)])
    def test_fourth_sample_without_a_name_is_alpha_only_if_opaque(
        self, tmp_path: Path, value: int, num_channels: int
    ) -> None:
        stack_zyxc = noise(4, 20, 20, 4, dtype="u1")
        stack_zyxc[..., 3] = value
        path = self.write(tmp_path / "a.tif", stack_zyxc, extrasamples=["unspecified"])
        assert open_stack(path).info.num_channels == num_channels


class TestAxes:
    def test_loop_of_writes_is_a_stack(self, tmp_path: Path) -> None:
        stack_zyx = noise(12, 24, 20)
        with tifffile.TiffWriter(tmp_path / "l.tif") as writer:
            for page_yx in stack_zyx:
                writer.write(page_yx)
        assert np.array_equal(read(tmp_path / "l.tif")[..., 0], stack_zyx)

    def test_pages_compressed_differently_keep_their_order(self, tmp_path: Path) -> None:
        stack_zyx = noise(7, 24, 20)
        with tifffile.TiffWriter(tmp_path / "l.tif") as writer:
            for z, page_yx in enumerate(stack_zyx):
                writer.write(page_yx, compression="lzw" if z % 2 else None, metadata=None)
        assert np.array_equal(read(tmp_path / "l.tif")[..., 0], stack_zyx)

    def test_thumbnail_that_declares_itself_is_left_out(self, tmp_path: Path) -> None:
        stack_zyx = noise(8, 32, 32)
        with tifffile.TiffWriter(tmp_path / "l.tif") as writer:
            writer.write(stack_zyx, metadata=None)
            writer.write(stack_zyx[0, ::5, ::3].copy(), metadata=None, subfiletype=1)
        assert np.array_equal(read(tmp_path / "l.tif")[..., 0], stack_zyx)
        assert "thumbnails" in open_stack(tmp_path / "l.tif").info.notes[0]

    def test_images_of_different_size_are_refused(self, tmp_path: Path) -> None:
        with tifffile.TiffWriter(tmp_path / "l.tif") as writer:
            writer.write(noise(32, 32), metadata=None)
            writer.write(noise(16, 32), metadata=None)
        with pytest.raises(DataError, match=r"2 images in one file .*\(32, 32\).*\(16, 32\)"):
            open_stack(tmp_path / "l.tif")

    @pytest.mark.filterwarnings("ignore:.*are stored as RGB:DeprecationWarning")  # the very ambiguity
    @pytest.mark.parametrize(
        ("shape", "metadata", "advice"),
        [
            ((5, 2, 16, 16), {}, "--axes ZCYX"),
            ((5, 3, 16, 16), {"axes": "TZYX"}, "T is time.*--axes"),
            ((4, 5, 3, 16, 16), {"axes": "TZCYX"}, "T is time.*`--axes`"),
            ((5, 3, 16, 16), {"axes": "RZYX"}, "R are neither.*--axes"),
            ((30, 20, 2), {}, "--axes YXC"),
            ((3, 16, 16), {}, "--axes ZYX` for planes or `--axes CYX` for channels"),
            ((4, 16, 16), {}, "--axes ZYX` for planes or `--axes CYX` for channels"),
        ],
    )
    def test_ambiguous_dimensions_name_the_option(
        self, tmp_path: Path, shape: tuple[int, ...], metadata: dict[str, str], advice: str
    ) -> None:
        path = tmp_path / "a.tif"
        grey = {} if len(shape) == 3 else {"photometric": "minisblack"}
        tifffile.imwrite(path, noise(*shape, dtype="u1"), metadata=metadata, **grey)
        with pytest.raises(DataError, match=advice):
            open_stack(path)

    @pytest.mark.parametrize(
        ("axes", "order"),
        [("ZCYX", (0, 2, 3, 1)), ("CZYX", (1, 2, 3, 0)), ("YXCZ", (3, 0, 1, 2)), ("zyxc", (0, 1, 2, 3))],
    )
    def test_axes_told_override_all_else(self, tmp_path: Path, axes: str, order: tuple[int, ...]) -> None:
        data = noise(5, 7, 16, 9)
        tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack", metadata={"axes": "TQYX"})
        assert np.array_equal(read(tmp_path / "a.tif", axes=axes), data.transpose(order))

    @pytest.mark.filterwarnings("ignore:.*are stored as RGB:DeprecationWarning")
    def test_three_planes_that_look_like_a_colour_image(self, tmp_path: Path) -> None:
        stack_zyx = noise(3, 16, 20, dtype="u1")
        tifffile.imwrite(tmp_path / "a.tif", stack_zyx)
        assert np.array_equal(read(tmp_path / "a.tif", axes="ZYX")[..., 0], stack_zyx)
        assert np.array_equal(read(tmp_path / "a.tif", axes="CYX")[0], np.moveaxis(stack_zyx, 0, 2))

    @pytest.mark.parametrize("options", [{"imagej": True}, {"ome": True}])
    def test_planes_that_tifffile_calls_channels(self, tmp_path: Path, options: dict[str, bool]) -> None:
        stack_zyx = noise(9, 16, 20)
        tifffile.imwrite(tmp_path / "a.tif", stack_zyx, **options)
        with pytest.raises(DataError, match="--axes ZYX` for planes or `--axes CYX` for channels"):
            open_stack(tmp_path / "a.tif")
        assert np.array_equal(read(tmp_path / "a.tif", axes="ZYX")[..., 0], stack_zyx)
        tifffile.imwrite(tmp_path / "few.tif", stack_zyx[:4], **options)
        assert open_stack(tmp_path / "few.tif").info.num_channels == 4

    @pytest.mark.parametrize("axes", ["ZY", "ZZYX", "TYX", "ZYXQ", "", "ZCYX"])
    def test_axes_that_do_not_fit(self, tmp_path: Path, axes: str) -> None:
        tifffile.imwrite(tmp_path / "a.tif", noise(5, 16, 20), metadata=None, photometric="minisblack")
        with pytest.raises(DataError, match="--axes"):
            open_stack(tmp_path / "a.tif", axes=axes)

    def test_one_plane_of_a_set_whose_axes_are_told(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "a.tif", noise(16, 20))
        assert read(tmp_path / "a.tif", axes="ZYX").shape == (1, 16, 20, 1)

    def test_resolution_for_printers_is_no_voxel_size(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "a.tif", noise(16, 20), resolution=(300, 300), resolutionunit="inch")
        assert open_stack(tmp_path / "a.tif").info.voxel_size_zyx_um is None


class TestPng:
    @pytest.mark.parametrize(
        ("mode", "dtype", "expected"),
        [("L", "u1", "uint8"), ("I;16", "u2", "uint16"), ("1", "?", "bool"), ("RGB", "u1", "uint8")],
    )
    def test_modes(self, tmp_path: Path, mode: str, dtype: str, expected: str) -> None:
        shape = (20, 24, 3) if mode == "RGB" else (20, 24)
        values = noise(*shape, dtype=dtype)
        Image.fromarray(values).save(tmp_path / "p.png")
        with Image.open(tmp_path / "p.png") as written:
            assert written.mode == mode
        stack = open_stack(tmp_path / "p.png")
        assert stack.info.dtype == expected
        assert np.array_equal(stack.plane(0).reshape(shape), values.astype(np.uint8) if dtype == "?" else values)

    def test_palette_gives_indices(self, tmp_path: Path) -> None:
        indices_yx = noise(20, 24, dtype="u1") % 3
        picture = Image.fromarray(indices_yx).convert("P")
        picture.putdata(indices_yx.ravel().tolist())
        picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
        picture.save(tmp_path / "p.png")
        stack = open_stack(tmp_path / "p.png")
        assert "palette image" in stack.info.notes[0]
        assert np.array_equal(stack.plane(0)[..., 0], indices_yx)

    @pytest.mark.parametrize("num_samples", [2, 3, 4])
    def test_sixteen_bit_colours_keep_all_bits(self, tmp_path: Path, num_samples: int) -> None:
        values = noise(20, 24, num_samples) * 257 + 3
        (tmp_path / "p.png").write_bytes(imagecodecs.png_encode(values))
        assert np.array_equal(open_stack(tmp_path / "p.png").plane(0), values)

    def test_constant_alpha_is_dropped(self, tmp_path: Path) -> None:
        values = noise(20, 24, 4, dtype="u1")
        values[..., 3] = 255
        Image.fromarray(values).save(tmp_path / "p.png")
        assert np.array_equal(open_stack(tmp_path / "p.png").plane(0), values[..., :3])


def test_reading_one_plane_decodes_no_other(tmp_path: Path) -> None:
    stack_zcyx = noise(6, 2, 64, 64)
    path = tmp_path / "h.ome.tif"
    tifffile.imwrite(path, stack_zcyx, metadata={"axes": "ZCYX"}, compression="deflate", photometric="minisblack")
    with tifffile.TiffFile(path) as tiff:
        bad = tiff.pages[3 * 2 + 1].dataoffsets[0]
    raw = bytearray(path.read_bytes())
    raw[bad : bad + 40] = b"\xff" * 40
    path.write_bytes(raw)
    stack = open_stack(path)
    for z in (0, 1, 2, 4, 5):
        assert np.array_equal(stack.plane(z), np.moveaxis(stack_zcyx[z], 0, 2))
    with pytest.raises(DataError, match=r"h\.ome\.tif plane 3: its data cannot be decoded"):
        stack.plane(3)
    stack.close()


def test_planes_beyond_the_ends(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(5, 16, 20), metadata=None)
    with open_stack(tmp_path / "a.tif") as stack:
        for z in (-1, 5):
            with pytest.raises(IndexError):
                stack.plane(z)


def _checksum(stack: Stack, z: int) -> int:
    return int(stack.plane(z).sum())


def test_pickled_forked_and_threaded_stacks_read_the_same(tmp_path: Path) -> None:
    stack_zyx = noise(16, 64, 64)
    tifffile.imwrite(tmp_path / "a.tif", stack_zyx, compression="deflate")
    sums = stack_zyx.sum(axis=(1, 2)).tolist()
    with open_stack(tmp_path / "a.tif") as stack:
        assert _checksum(pickle.loads(pickle.dumps(stack)), 3) == sums[3]
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(lambda z: _checksum(stack, z % 16), range(64))) == sums * 4
    tifffile.imwrite(tmp_path / "one.tif", stack_zyx[5], compression="deflate")
    single = open_stack(tmp_path / "one.tif")
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda _: _checksum(single, 0), range(64))) == sums[5:6] * 64


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this platform")
def test_a_forked_process_opens_its_own_file(tmp_path: Path) -> None:
    code = f"""
import os, sys
from pathlib import Path
from stackseg.dataset.files.stack import open_stack
stack = open_stack(Path({str(tmp_path / "a.tif")!r}))
stack.plane(0)
children = []
for start in range(4):
    child = os.fork()
    if child == 0:
        os._exit(0 if all(int(stack.plane(z).max()) == z for _ in range(30) for z in range(start, 16)) else 1)
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""
    planes = np.zeros((16, 64, 64), np.uint8) + np.arange(16, dtype=np.uint8)[:, None, None]
    tifffile.imwrite(tmp_path / "a.tif", planes)
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts handles by /proc")
def test_single_planes_hold_no_file_handles(tmp_path: Path) -> None:
    for number in range(20):
        tifffile.imwrite(tmp_path / f"{number}.tif", noise(16, 20))
    before = len(os.listdir("/proc/self/fd"))
    stacks = [open_stack(tmp_path / f"{number}.tif") for number in range(20)]
    assert [stack.plane(0).shape for stack in stacks] == [(16, 20, 1)] * 20
    assert len(os.listdir("/proc/self/fd")) == before


def test_oddities_stay_off_stderr(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(16, 20), extratags=[(42113, "s", 0, "no number", True)])  # GDAL_NODATA
    code = f"import pathlib, stackseg.dataset.files.stack as files; files.open_stack(pathlib.Path({str(path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    tifffile.TiffFile(path).close()
    assert "GDAL_NODATA" in caplog.text  # else the file would show nothing


def test_check_finite_counts_what_is_not() -> None:
    plane_yxc = np.ones((4, 5, 1), np.float32)
    check_finite(plane_yxc, "a.tif plane 0")
    check_finite(np.ones((4, 5, 1), np.uint8), "a.tif plane 0")
    plane_yxc[0, 0], plane_yxc[1, 1], plane_yxc[2, 2] = np.nan, np.inf, -np.inf
    with pytest.raises(DataError, match=r"^a\.tif plane 7: 3 of 20 pixels"):
        check_finite(plane_yxc, "a.tif plane 7")


@real_data
@pytest.mark.parametrize(
    ("name", "shape", "dtype", "axes"),
    [
        ("sandstone_Versa0000_image.tif", (1024, 996, 1), "uint8", "YX"),
        ("sandstone_Versa0000_mask_rgb_lzw.tif", (1024, 996, 3), "uint8", "YXS"),
        ("vnc_01_raw.tif", (1024, 1024, 1), "uint8", "YX"),
        ("vnc_01_mito_1bit.png", (1024, 1024, 1), "bool", "YX"),
        ("cdeep3m_010_label_palette.png", (1024, 1024, 1), "uint8", "YX"),
        ("isbi_00_label_0_255.png", (512, 512, 1), "uint8", "YX"),
    ],
)
def test_files_as_they_were_found(name: str, shape: tuple[int, ...], dtype: str, axes: str) -> None:
    stack = open_stack(REAL / "messy-originals" / name)
    assert (stack.plane(0).shape, stack.info.dtype, stack.info.axes) == (shape, dtype, axes)
    assert stack.info.encoding.kind == ("RGB" if "rgb" in name else "grey")  # its palette is a ramp of grey


@real_data
def test_image_as_found_is_plane_0_of_the_prepared_stack() -> None:
    found_yxc = open_stack(REAL / "messy-originals" / "sandstone_Versa0000_image.tif")
    with open_stack(REAL / "sandstone" / "images.tif") as prepared:
        assert len(prepared) == 7
        assert np.array_equal(found_yxc.plane(0), prepared.plane(0))
    assert found_yxc.info.voxel_size_zyx_um == pytest.approx((None, 2.2314505, 2.2314505))


@real_data
def test_varied_fields_read_as_listed() -> None:
    for path in sorted((REAL / "dsb2018-varied" / "images").glob("*.tif")):
        _, kind, size = path.stem.split("_")
        info = open_stack(path).info
        assert info.num_channels == (1 if kind == "gray" else 3)
        assert size == f"{info.shape_yx[0]}x{info.shape_yx[1]}"
        assert any("alpha" in note for note in info.notes) == (kind == "rgba")
