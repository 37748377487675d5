"""What samples mean is read from the file; pages and headers that contradict one another are refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from stackseg.dataset.files.stack import open_stack
from stackseg.errors import DataError

PAGES_ZYX = np.random.default_rng(3).integers(0, 200, (12, 20, 24)).astype(np.uint8)
LUT = np.random.default_rng(0).integers(0, 65535, (3, 256)).astype(np.uint16)


def write_pages(path: Path, odd: dict[int, dict[str, Any]], **all_pages: Any) -> Path:
    """Write plain pages, some by options of their own."""
    with tifffile.TiffWriter(path) as writer:
        for z, page_yx in enumerate(PAGES_ZYX):
            options = {"photometric": "minisblack", "metadata": None, **all_pages, **odd.get(z, {})}
            writer.write(page_yx, **options)
    return path


def write_grey_png(path: Path, values_yx: np.ndarray, bits: int) -> None:
    """Write a grey PNG of 1, 2 or 4 bits a pixel; the width has to fill whole bytes."""
    unpacked = np.unpackbits(values_yx.astype(np.uint8)[..., None], axis=2)[..., -bits:]
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in unpacked)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", values_yx.shape[1], values_yx.shape[0], bits, 0, 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize(
    ("photometric", "samples", "words"),
    [
        ("separated", 4, "separated inks"),
        ("cielab", 3, "CIELAB"),
        ("icclab", 3, "ICC Lab"),
        ("ycbcr", 3, "YCbCr"),
        ("cfa", 1, "mosaic"),
    ],
)
def test_what_is_neither_grey_nor_rgb_is_refused_by_its_name(
    tmp_path: Path, photometric: str, samples: int, words: str
) -> None:
    pixels = np.zeros((16, 16, samples) if samples > 1 else (16, 16), np.uint8)
    options: dict[str, Any] = {"extratags": [(530, "H", 2, (1, 1), True)]} if photometric == "ycbcr" else {}
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric=photometric, metadata=None, **options)
    with pytest.raises(DataError, match=rf"x\.tif: .*{words}.*expected grey values, RGB or a palette"):
        open_stack(tmp_path / "x.tif")


def test_jpeg_colours_are_read_as_rgb_and_said(tmp_path: Path) -> None:
    colours_yxc = np.zeros((32, 32, 3), np.uint8)
    colours_yxc[:, :16] = (200, 30, 40)
    tifffile.imwrite(tmp_path / "j.tif", colours_yxc, photometric="rgb", compression="jpeg", metadata=None)
    stack = open_stack(tmp_path / "j.tif")
    assert np.abs(stack.plane(0).astype(int) - colours_yxc)[:, :8].max() < 5
    assert stack.info.encoding.kind == "RGB"
    assert stack.info.notes == ("stored as YCbCr, read as RGB", "JPEG-compressed: values are not exact")


@pytest.mark.parametrize("suffix", ["tif", "png"])
@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8])
def test_a_file_that_asks_to_be_turned_is_refused(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"o.{suffix}"
    if suffix == "tif":
        tags = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(path, PAGES_ZYX[0], photometric="minisblack", extratags=tags, metadata=None)
    else:
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(PAGES_ZYX[0]).save(path, exif=exif)
    if orientation in (0, 1):  # 0 says nothing
        assert np.array_equal(open_stack(path).plane(0)[..., 0], PAGES_ZYX[0])
    else:
        with pytest.raises(DataError, match=rf"o\.{suffix}: it is to be shown .*orientation is {orientation}"):
            open_stack(path)


def test_a_ramp_of_grey_is_no_palette(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (3, 1))
    for colours, kind in ((ramp, "grey"), (ramp[:, ::-1], "palette"), (LUT, "palette")):
        tifffile.imwrite(tmp_path / "p.tif", PAGES_ZYX, photometric="palette", colormap=colours, metadata=None)
        info = open_stack(tmp_path / "p.tif").info
        assert (info.encoding.kind, bool(info.notes)) == (kind, kind == "palette")


@pytest.mark.parametrize(
    ("odd", "all_pages", "words"),
    [
        ({"photometric": "miniswhite"}, {}, "(page {} has another photometric interpretation|2 images in one file)"),
        ({"extratags": [(274, "H", 1, 3, True)]}, {}, "page {} has another orientation than page 0"),
        (
            {"colormap": LUT[:, ::-1]},
            {"photometric": "palette", "colormap": LUT},
            "page {} has another palette than page 0",
        ),
    ],
)
def test_a_page_that_differs_from_the_first_is_named(
    tmp_path: Path, odd: dict[str, Any], all_pages: dict[str, Any], words: str
) -> None:
    assert len(open_stack(write_pages(tmp_path / "alike.tif", {}, **all_pages))) == 12
    for page in (1, 5, 11):  # tifffile itself compares pages 1, 7 and the last
        path = write_pages(tmp_path / "odd.tif", {page: odd}, **all_pages)
        with pytest.raises(DataError, match=rf"odd\.tif: {words.format(page)}"):
            open_stack(path)


@pytest.mark.parametrize(
    ("kind", "description"),
    [
        ("ImageJ", "ImageJ=1.54f\nimages=7\nslices=7\nloop=false\n"),
        ("", '{"shape": [7, 20, 24]}'),
        (
            "OME",
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
            '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="24" SizeY="20" '
            'SizeZ="7" SizeC="1" SizeT="1"><TiffData IFD="0" PlaneCount="7"/></Pixels></Image></OME>',
        ),
    ],
)
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_a_header_that_names_fewer_pages_than_there_are(
    tmp_path: Path, kind: str, description: str, compression: str | None
) -> None:
    path = write_pages(tmp_path / "h.tif", {0: {"description": description}}, compression=compression)
    with pytest.raises(DataError, match=rf"h\.tif: .*(12 pages, and its {kind} header names 7|do not fit).*--axes ZYX"):
        open_stack(path)
    with open_stack(path, axes="ZYX") as stack:
        assert len(stack) == 12
        assert np.array_equal(stack.plane(11)[..., 0], PAGES_ZYX[11])


def test_data_behind_the_planes_that_a_header_names_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "v.tif"
    tifffile.imwrite(path, PAGES_ZYX[:5], imagej=True, metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as tiff:
        only_header = tiff.pages[0].offset + 2 + 12 * len(tiff.pages[0].tags)
    raw = bytearray(path.read_bytes())
    raw[only_header : only_header + 4] = bytes(4)  # no further headers, as in files above 4 GB
    path.write_bytes(bytes(raw) + PAGES_ZYX[5:8].tobytes())
    stack = open_stack(path)
    assert len(stack) == 5
    assert any("data for" in note and "behind them" in note for note in stack.info.notes)


def test_missing_tiles_are_said_to_hold_what_they_are_read_as(tmp_path: Path) -> None:
    path = tmp_path / "t.tif"
    image_yx = np.full((32, 32), 9, np.uint8)
    nodata = [(42113, "s", 0, "77", True)]
    tifffile.imwrite(path, image_yx, tile=(16, 16), compression="deflate", extratags=nodata, metadata=None)
    with tifffile.TiffFile(path) as tiff:
        offsets, counts = (tiff.pages.first.tags[code].valueoffset for code in (324, 325))
    raw = bytearray(path.read_bytes())
    raw[offsets : offsets + 4] = bytes(4)
    raw[counts : counts + 2] = bytes(2)
    path.write_bytes(raw)
    stack = open_stack(path)
    assert stack.info.notes == ("1 empty tiles or strips, read as 77",)
    assert set(np.unique(stack.plane(0)[:16, :16])) == {77}


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_png_of_few_bits_holds_the_values_that_were_stored(tmp_path: Path, bits: int) -> None:
    values_yx = np.random.default_rng(bits).integers(0, 2**bits, (9, 16)).astype(np.uint8)
    write_grey_png(tmp_path / "g.png", values_yx, bits)
    stack = open_stack(tmp_path / "g.png")
    assert np.array_equal(stack.plane(0)[..., 0], values_yx)
    assert (stack.info.encoding.kind, stack.info.encoding.bits) == ("grey", bits)
