"""Files that are missing, cut off, corrupt or absurd: one line that says so, and never wrong pixels."""

from __future__ import annotations

import contextlib
import functools
import logging
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stackseg.dataset.files.stack import open_stack
from stackseg.errors import DataError
from stackseg.intake.write_tiff import write_stack

STACK_ZYX = np.random.default_rng(3).integers(0, 60000, (10, 24, 20)).astype(np.uint16)
SMOOTH_ZYX = np.zeros((10, 24, 20), np.uint8) + np.arange(20, dtype=np.uint8)

WRITERS: dict[str, Callable[[Path], Any]] = {
    "plain": lambda path: tifffile.imwrite(path, STACK_ZYX, metadata=None),
    "shaped": lambda path: tifffile.imwrite(path, STACK_ZYX, compression="deflate"),
    "truncatable": lambda path: tifffile.imwrite(path, STACK_ZYX, truncate=True),
    "imagej": lambda path: tifffile.imwrite(path, STACK_ZYX, imagej=True, byteorder=">", metadata={"axes": "ZYX"}),
    "ome": lambda path: tifffile.imwrite(
        path, STACK_ZYX.reshape(5, 2, 24, 20), ome=True, tile=(16, 16), compression="zstd", metadata={"axes": "ZCYX"}
    ),
    "bigtiff": lambda path: tifffile.imwrite(path, SMOOTH_ZYX, bigtiff=True, compression="packbits", metadata=None),
    "lzw": lambda path: tifffile.imwrite(path, SMOOTH_ZYX, rowsperstrip=5, compression="lzw", predictor=True),
    "bilevel": lambda path: tifffile.imwrite(path, STACK_ZYX > 30000, metadata=None),
    "loop": lambda path: loop(path),
    "ours": lambda path: write_stack(path, STACK_ZYX, num_planes=10, compression="none"),
    "png": lambda path: Image.fromarray(STACK_ZYX[0]).save(path, "PNG"),
}


def loop(path: Path) -> None:
    with tifffile.TiffWriter(path) as writer:
        for page_yx in STACK_ZYX:
            writer.write(page_yx, photometric="minisblack")


@functools.cache
def original(kind: str, folder: Path) -> tuple[bytes, np.ndarray]:
    path = folder / f"{kind}.whole"
    WRITERS[kind](path)
    with open_stack(path) as stack:
        return path.read_bytes(), np.stack([stack.plane(z) for z in range(len(stack))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(sorted(WRITERS)), share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused_when_it_is_opened(kind: str, share: float, folder: Path) -> None:
    whole, stack_zyxc = original(kind, folder)
    path = folder / "cut.tif"
    path.write_bytes(whole[: int(share * len(whole))])
    try:
        stack = open_stack(path)
    except DataError as error:
        message = str(error)
    else:  # at most the name of the program that wrote it is gone
        assert len(whole) * (1 - share) < 64
        assert np.array_equal(np.stack([stack.plane(z) for z in range(len(stack))]), stack_zyxc)
        stack.close()
        message = f"{path}: "
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(sorted(WRITERS)))
def test_scribbled_bytes_raise_nothing_but_dataerror(data: st.DataObject, kind: str, folder: Path) -> None:
    whole, _ = original(kind, folder)
    raw = bytearray(whole)
    places = st.integers(0, len(raw) - 1) | st.integers(0, min(300, len(raw) - 1))
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=5)):
        raw[place] = value
    path = folder / "scribbled.tif"
    path.write_bytes(raw)
    with contextlib.suppress(DataError), open_stack(path) as stack:
        for z in range(min(len(stack), 12)):
            assert stack.plane(z).shape == (*stack.info.shape_yx, stack.info.num_channels)


def test_missing_folder_empty_text_and_pointer(tmp_path: Path) -> None:
    cases = {
        "missing.tif": (None, "no such file"),
        "empty.tif": (b"", "an empty file"),
        "notes.tif": (b"z,y,x\n1,2,3\n", "neither TIFF nor PNG"),
        "photo.tif": (b"\xff\xd8\xff\xe0" + bytes(60), "neither TIFF nor PNG"),
        "pointer.tif": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        "short.tif": (b"II*\0", "a TIFF that cannot be read"),
        "short.png": (b"\x89PNG\r\n\x1a\n", "a PNG that cannot be read"),
    }
    for name, (content, found) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"^{tmp_path / name}: .*{found}"):
            open_stack(tmp_path / name)
    with pytest.raises(DataError, match="a folder; expected an image file"):
        open_stack(tmp_path)


def test_a_link_that_goes_round_ends(tmp_path: Path) -> None:
    path = tmp_path / "round.tif"
    with tifffile.TiffWriter(path) as writer:
        for _ in range(150):
            writer.write(STACK_ZYX[0], metadata=None)
    with tifffile.TiffFile(path) as tiff:
        first, last = tiff.pages[120], tiff.pages[149]
        link = last.offset + 2 + 12 * len(tiff.pages[149].aspage().tags)
    raw = bytearray(path.read_bytes())
    raw[link : link + 4] = struct.pack("<I", first.offset)
    path.write_bytes(raw)
    with pytest.raises(DataError, match="the link to page 150 is broken"):
        open_stack(path)


@pytest.mark.parametrize("compression", [None, "deflate", "lzw", "packbits"])
@pytest.mark.parametrize("size", [2**20, 2**14, 2**30])
def test_absurd_dimensions_are_refused_before_memory_is_asked_for(
    tmp_path: Path, compression: str | None, size: int
) -> None:
    path = tmp_path / "absurd.tif"
    tifffile.imwrite(path, STACK_ZYX[0], compression=compression, metadata=None, rowsperstrip=24)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tags = tiff.pages.first.tags
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            tags[name].overwrite(size)
    with pytest.raises(DataError, match=r"truncated or corrupt|promises"):
        open_stack(path)


def test_what_compresses_very_well_is_not_absurd(tmp_path: Path) -> None:
    for compression in ("deflate", "lzw", "packbits", "zstd"):
        path = tmp_path / f"{compression}.tif"
        blank_yx = np.zeros((4096, 4096), np.uint8)
        tifffile.imwrite(path, blank_yx, compression=compression, rowsperstrip=4096)
        assert not open_stack(path).plane(0).any()


def test_png_larger_than_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.fromarray(STACK_ZYX[0]).save(path)
    raw = bytearray(path.read_bytes())
    raw[16:24] = struct.pack(">II", 2**20, 2**20)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    path.write_bytes(raw)
    with pytest.raises(DataError, match="megapixels"):
        open_stack(path)


@pytest.mark.parametrize("dtype", ["c8", "c16"])
def test_complex_pixels_are_refused(tmp_path: Path, dtype: str) -> None:
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((16, 16), dtype), metadata=None)
    with pytest.raises(DataError, match="pixels of type complex"):
        open_stack(tmp_path / "c.tif")


def test_imagej_file_cut_in_its_data(tmp_path: Path) -> None:
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, STACK_ZYX, imagej=True, metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as tiff:
        first = tiff.pages.first
        start, link = first.dataoffsets[0], first.offset + 2 + 12 * len(first.tags)
    raw = bytearray(path.read_bytes())
    raw[link : link + 4] = bytes(4)  # a single header, as ImageJ writes large stacks
    path.write_bytes(raw[: start + int(6.5 * STACK_ZYX[0].nbytes)])
    with pytest.raises(DataError, match=r"metadata and its pages do not fit each other .*ImageJ.* Copy or export"):
        open_stack(path)


def test_empty_tiles_are_zero_and_said(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    page_yx = np.ones((64, 64), np.uint8)
    tifffile.imwrite(path, page_yx, tile=(32, 32), compression="deflate", metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tags = tiff.pages.first.tags
        tags["TileOffsets"].overwrite((0, *tags["TileOffsets"].value[1:]))
        tags["TileByteCounts"].overwrite((0, *tags["TileByteCounts"].value[1:]))
    stack = open_stack(path)
    page_yx[:32, :32] = 0
    assert np.array_equal(stack.plane(0)[..., 0], page_yx)
    assert stack.info.notes == ("1 empty tiles or strips, read as 0",)


def test_a_damaged_tag_is_refused_only_where_pixels_depend_on_it(tmp_path: Path) -> None:
    path = tmp_path / "tag.tif"
    for name, needed in (("BitsPerSample", True), ("Software", False)):
        tifffile.imwrite(path, STACK_ZYX)
        with tifffile.TiffFile(path) as tiff:
            place = tiff.pages.first.tags[name].offset
        raw = bytearray(path.read_bytes())
        raw[place + 2 : place + 4] = b"\xff\xff"  # a data type that there is not
        path.write_bytes(raw)
        if needed:
            with pytest.raises(DataError, match=r"corrupt .*TiffTag 258"):
                open_stack(path)
        else:
            assert np.array_equal(open_stack(path).plane(3)[..., 0], STACK_ZYX[3])


def test_damage_is_noticed_whatever_is_done_to_the_logger(tmp_path: Path) -> None:
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, STACK_ZYX, imagej=True, metadata={"axes": "ZYX"}, truncate=True)
    path.write_bytes(path.read_bytes()[:-99])
    log = logging.getLogger("tifffile")
    log.disabled = True
    log.setLevel(logging.CRITICAL)
    with pytest.raises(DataError, match="do not fit"):
        open_stack(path)
