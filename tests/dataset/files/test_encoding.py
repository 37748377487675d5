"""What samples mean is read from the file; pages and headers that contradict one another are refused."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
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


def write_png(
    path: Path,
    rows: Sequence[bytes],
    header: tuple[int, int, int],
    *,
    before: Sequence[tuple[bytes, bytes]] = (),
    behind: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Write a PNG of rows as they are stored; the header is width, bits and colour type, the rest further chunks."""
    width, bits, colour_type = header
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), bits, colour_type, 0, 0, 0)), *before]
    parts += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), *behind, (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def write_grey_png(path: Path, values_yx: np.ndarray, bits: int) -> None:
    """Write a grey PNG of 1, 2 or 4 bits a pixel; the width has to fill whole bytes."""
    unpacked = np.unpackbits(values_yx.astype(np.uint8)[..., None], axis=2)[..., -bits:]
    write_png(path, [np.packbits(row).tobytes() for row in unpacked], (values_yx.shape[1], bits, 0))


def write_tiff(path: Path, pages: Sequence[tuple[Mapping[int, int | tuple[int, ...] | str], bytes]]) -> None:
    """Write a little-endian TIFF from tags and the one strip of each page, each page's data in front of its header.

    Tags of numbers are written as 32-bit, others as text; size is 24 x 20 of 8 bits where nothing else is said.
    """
    raw, link = bytearray(b"II*\0" + bytes(4)), 4
    for tags, strip in pages:
        plain = {256: 24, 257: 20, 258: 8, 259: 1, 262: 1, 277: 1, 278: 20, 273: len(raw), 279: len(strip)}
        raw += strip
        entries = b""
        for code, value in sorted((plain | dict(tags)).items()):
            text = isinstance(value, str)
            numbers = value if isinstance(value, tuple) else (value,)
            data = str(value).encode() + b"\0" if text else struct.pack(f"<{len(numbers)}I", *numbers)
            count = len(data) if text else len(numbers)
            if len(data) > 4:
                offset, raw = len(raw), raw + data
                data = struct.pack("<I", offset)
            entries += struct.pack("<HHI", code, 2 if text else 4, count) + data.ljust(4, b"\0")
        struct.pack_into("<I", raw, link, len(raw))
        raw += struct.pack("<H", len(entries) // 12) + entries
        link, raw = len(raw), raw + bytes(4)
    path.write_bytes(raw)


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


@pytest.mark.parametrize(("kinds", "odd"), [((1, 0, 0), 1), ((0, 4, 0), 1), ((0, 0, 5), 2)])
def test_a_thumbnail_or_mask_of_the_size_of_the_image_is_no_plane(
    tmp_path: Path, kinds: tuple[int, ...], odd: int
) -> None:
    strips = [page_yx.tobytes() for page_yx in PAGES_ZYX]
    write_tiff(tmp_path / "k.tif", [({254: kind}, strip) for kind, strip in zip(kinds, strips, strict=False)])
    with pytest.raises(DataError, match=rf"k\.tif: page {odd} has another kind \(thumbnail, mask or neither"):
        open_stack(tmp_path / "k.tif")
    write_tiff(tmp_path / "k.tif", [({254: kind}, strip) for kind, strip in zip((0, 2, 2), strips, strict=False)])
    assert len(open_stack(tmp_path / "k.tif")) == 3  # "a page of several" says no more than that


def test_a_smaller_image_that_does_not_call_itself_a_thumbnail_is_not_left_out_in_silence(tmp_path: Path) -> None:
    half = np.ascontiguousarray(PAGES_ZYX[1, ::2, ::2]).tobytes()
    write_tiff(tmp_path / "h.tif", [({}, PAGES_ZYX[0].tobytes()), ({256: 12, 257: 10, 278: 10}, half)])
    stack = open_stack(tmp_path / "h.tif")
    assert np.array_equal(stack.plane(0)[..., 0], PAGES_ZYX[0])
    assert stack.info.notes == ("smaller images beside it ((10, 12)) are taken for levels of a pyramid and left out",)


def test_images_below_a_page_are_no_planes(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        writer.write(PAGES_ZYX[0], subifds=2, photometric="minisblack", metadata=None)
        for page_yx in PAGES_ZYX[1:4]:  # the first two become SubIFDs
            writer.write(page_yx, photometric="minisblack", metadata=None)
    with pytest.raises(DataError, match=r"s\.tif: 2 images below its pages \(SubIFDs\)"):
        open_stack(tmp_path / "s.tif")


def test_imagej_pages_are_where_their_headers_say(tmp_path: Path) -> None:
    # each page's data lie before its header, as libtiff writes them: a second page is not right behind the first
    description = "ImageJ=1.54f\nimages=2\nslices=2\n"
    write_tiff(tmp_path / "i.tif", [({270: description}, PAGES_ZYX[0].tobytes()), ({}, PAGES_ZYX[1].tobytes())])
    with open_stack(tmp_path / "i.tif") as stack:
        assert [np.array_equal(stack.plane(z)[..., 0], PAGES_ZYX[z]) for z in range(len(stack))] == [True, True]


def test_values_that_imagej_calibrates_are_kept_as_stored_and_it_is_said(tmp_path: Path) -> None:
    stored_zyx = PAGES_ZYX.astype(np.uint16) + 32768  # so ImageJ stores signed values
    metadata = {"axes": "ZYX", "cf": 0, "c0": -32768, "c1": 1}
    tifffile.imwrite(tmp_path / "c.tif", stored_zyx, imagej=True, metadata=metadata)
    stack = open_stack(tmp_path / "c.tif")
    assert np.array_equal(stack.plane(3)[..., 0], stored_zyx[3])
    assert stack.info.notes == ("ImageJ shows its values calibrated (cf=0, c0=-32768, c1=1); they are kept as stored",)


def test_fax_pages_are_decoded_each_by_its_own_options(tmp_path: Path) -> None:
    pages, written_zyx = [], np.random.default_rng(5).random((3, 20, 24)) < 0.4
    for page_yx, options in zip(written_zyx, (0, 1, 0), strict=True):  # rows coded alone, and by the row above
        file = io.BytesIO()
        Image.fromarray(page_yx).save(file, "TIFF", compression="group3", tiffinfo={292: options})
        file.seek(0)
        with tifffile.TiffFile(file) as tiff:
            page = tiff.pages.first
            start, length = page.dataoffsets[0], page.databytecounts[0]
        tags = {258: 1, 259: 3, 262: int(page.photometric), 292: options}
        pages.append((tags, file.getvalue()[start : start + length]))
    write_tiff(tmp_path / "f.tif", pages)
    with open_stack(tmp_path / "f.tif") as stack:
        assert np.array_equal([stack.plane(z)[..., 0] for z in range(3)], written_zyx)


def test_depths_whose_storage_programs_differ_on_are_refused(tmp_path: Path) -> None:
    write_tiff(tmp_path / "d.tif", [({258: 24}, bytes(1440))])
    with pytest.raises(DataError, match=r"d\.tif: little-endian samples of 24 bits"):
        open_stack(tmp_path / "d.tif")
    write_tiff(tmp_path / "d.tif", [({258: (5, 6, 5), 262: 2, 277: 3}, bytes(960))])
    with pytest.raises(DataError, match=r"d\.tif: samples of different depths \(\(5, 6, 5\) bits\)"):
        open_stack(tmp_path / "d.tif")


def test_indices_without_a_palette_are_refused(tmp_path: Path) -> None:
    write_tiff(tmp_path / "p.tif", [({262: 3}, PAGES_ZYX[0].tobytes())])
    write_png(tmp_path / "p.png", [row.tobytes() for row in PAGES_ZYX[0]], (24, 8, 3))
    for name in ("p.tif", "p.png"):
        with pytest.raises(DataError, match=rf"{name}: palette indices without a palette"):
            open_stack(tmp_path / name)


def test_a_broken_date_is_no_damage(tmp_path: Path) -> None:
    # 33629 (UIC2tag of MetaMorph): for each plane its distance, and day and time of making and changing it
    planes = b"".join(page_yx.tobytes() for page_yx in PAGES_ZYX[:2])
    write_tiff(tmp_path / "s.stk", [({33628: (0, 0)}, planes)])
    raw = bytearray((tmp_path / "s.stk").read_bytes())
    (header,) = struct.unpack_from("<I", raw, 4)
    (num_tags,) = struct.unpack_from("<H", raw, header)
    entries = bytes(raw[header + 2 : header + 2 + 12 * num_tags])
    values = struct.pack("<6I", 1, 1, 0, 0, 0, 0) * 2
    start = len(raw) + len(values)
    raw += values + struct.pack("<H", num_tags + 1) + entries + struct.pack("<HHII", 33629, 5, 2, start - len(values))
    struct.pack_into("<I", raw, 4, start)
    (tmp_path / "s.stk").write_bytes(raw + bytes(4))
    with open_stack(tmp_path / "s.stk", axes="ZYX") as stack:
        assert np.array_equal([stack.plane(z)[..., 0] for z in range(len(stack))], PAGES_ZYX[:2])


def turned_exif() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return exif.tobytes().removeprefix(b"Exif\0\0")


@pytest.mark.parametrize(
    "chunks",
    [
        {"before": [(b"eXIf", turned_exif())]},
        {"behind": [(b"eXIf", turned_exif())]},
        {"before": [(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')]},
    ],
)
def test_png_orientation_counts_wherever_it_stands(tmp_path: Path, chunks: dict[str, Any]) -> None:
    write_png(tmp_path / "o.png", [row.tobytes() for row in PAGES_ZYX[0]], (24, 8, 0), **chunks)
    with pytest.raises(DataError, match=r"o\.png: it is to be shown .*orientation is 6"):
        open_stack(tmp_path / "o.png")


def test_deep_colours_of_which_one_is_transparent(tmp_path: Path) -> None:
    values_yxc = np.random.default_rng(2).integers(0, 65536, (8, 10, 3)).astype(">u2")
    transparent = [(b"tRNS", values_yxc[0, 0].tobytes())]
    write_png(tmp_path / "t.png", [row.tobytes() for row in values_yxc], (10, 16, 2), before=transparent)
    assert imagecodecs.png_decode((tmp_path / "t.png").read_bytes()).shape == (8, 10, 4)  # else it would show nothing
    stack = open_stack(tmp_path / "t.png")
    assert np.array_equal(stack.plane(0), values_yxc)
    assert stack.info.notes == ("its transparent colour or palette entries are read as if opaque",)


def test_a_damaged_tag_that_numbers_the_planes_is_refused(tmp_path: Path) -> None:
    write_tiff(tmp_path / "s.stk", [({33628: 0}, PAGES_ZYX[:2].tobytes())])  # the tag points to no place
    with pytest.raises(DataError, match=r"s\.stk: truncated or corrupt \(.*33628"):
        open_stack(tmp_path / "s.stk")
