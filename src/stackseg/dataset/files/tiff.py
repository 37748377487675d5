"""A TIFF file as pages that are decoded one at a time, checked before anything is allocated."""

from __future__ import annotations

import math
from contextlib import ExitStack, closing
from pathlib import Path
from typing import BinaryIO

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile

from stackseg.dataset.files.axes import VoxelSize, imagej_voxel_size, ome_voxel_size
from stackseg.dataset.files.encoding import check_orientation, tiff_encoding
from stackseg.dataset.files.tiff_validation import (
    COPY_AGAIN,
    MEANING,
    ORIENTATION,
    STORAGE,
    SUBFILE_TYPE,
    Page,
    PageHeader,
    check_alike,
    check_extent,
    check_header,
    check_pages,
    check_single_file,
    check_subifds,
    page_headers,
    refusing_complaints,
)
from stackseg.errors import DataError, one_line

_MOST_CHANNELS_UNASKED = 4
_FAX = (2, 3, 4)


class TiffPages:
    """A TIFF file: classic, BigTIFF, OME, ImageJ, tiled or striped; a `PageSource` of `pages.py`."""

    def __init__(self, file: Path | BinaryIO, *, where: str, axes_given: bool) -> None:
        self._where = where
        self.notes: list[str] = []
        try:
            with ExitStack() as opened:
                with refusing_complaints(self._where, metadata=not axes_given):
                    # an OME header may name other files, anywhere: none but this one is ever opened
                    self._tiff = opened.enter_context(tifffile.TiffFile(file, _multifile=False))
                    headers = page_headers(self._tiff, self._where)
                    check_single_file(self._tiff, self._where)
                    if unnamed := _unnamed_pages(self._tiff, headers):
                        self._require_axes(axes_given, len(headers), unnamed)
                        self._tiff.close()
                        self._tiff = opened.enter_context(
                            tifffile.TiffFile(file, _multifile=False, is_imagej=False, is_ome=False, is_shaped=False)
                        )
                    self._inspect()
                if headers:
                    self._check_alike(headers)
                opened.pop_all()
        except DataError:
            raise
        except Exception as error:  # whatever a corrupt file makes tifffile raise
            found = f"a TIFF that cannot be read ({one_line(error)})"
            raise DataError(found, where=self._where, remedy=COPY_AGAIN) from error

    def _require_axes(self, axes_given: bool, num_pages: int, unnamed: list[int]) -> None:
        """Refuse a header that says less than the file holds, unless the user says what the pages are."""
        kind = {"imagej": "ImageJ header", "ome": "OME header"}.get(self._tiff.series[0].kind, "header")
        found = f"the file holds {num_pages} pages, and its {kind} names {num_pages - len(unnamed)}"
        if not axes_given:
            raise DataError(
                found,
                expected="a header that names them all",
                where=self._where,
                remedy="`--axes ZYX` (for masks `--mask-axes ZYX`) reads all pages as planes; or save it again in Fiji",
            )
        self.notes.append(f"{found}: all were read, as the axes are given")

    def _check_alike(self, headers: list[PageHeader]) -> None:
        """Refuse pages that differ in what their pixels mean, or ask to be turned."""
        check_orientation(self._series[0].keyframe.tags.valueof(ORIENTATION), self._where)
        pages = [number for one in self._series for number in _numbers(one)]
        check_alike(headers, pages, MEANING, self._where)
        for one in self._series:
            check_alike(headers, _numbers(one), STORAGE, self._where)
        if self._offset is not None and self._series[0].kind == "imagej" and len(headers) == 1:
            num_planes = math.prod(self.shape) // math.prod(self._page_shape)
            behind = (self._tiff.filehandle.size - self._offset) // self._page_bytes - num_planes
            if behind > 0:
                found = f"its header names {num_planes} pages, and data for {behind} more lie behind them"
                self.notes.append(found)

    def _inspect(self) -> None:
        tiff = self._tiff
        tiff.filehandle.set_lock(True)  # planes may be read from several threads
        self._series = series = self._main_series()
        first = series[0].keyframe
        check_header(first, self._where)
        self.encoding, notes = tiff_encoding(first, self._where)
        self.notes += notes
        page_sizes = [pair for pair in zip(first.axes, first.shape, strict=True) if _kept(*pair)]
        if len(series) > 1:
            sizes = [("I", sum(len(one) for one in series)), *page_sizes]
        else:
            sizes = [pair for pair in zip(series[0].axes, series[0].shape, strict=True) if _kept(*pair)]
        self.axes = "".join(letter for letter, _ in sizes)
        self.shape = tuple(size for _, size in sizes)
        self.dtype = np.dtype(series[0].dtype)
        self._page_shape = tuple(size for _, size in page_sizes)
        self.num_page_axes = len(self._page_shape)
        if self.shape[-self.num_page_axes :] != self._page_shape:
            raise DataError(
                f"its metadata speak of {self.axes} {self.shape}, its pages are {first.axes} {first.shape}",
                where=self._where,
                remedy="save it again as plain TIFF (Fiji: File > Save As > Tiff)",
            )
        num_pages = math.prod(self.shape[: -self.num_page_axes])
        file_bytes = tiff.filehandle.size
        in_one_block = len(series) == 1 and self._follow_one_another(series[0])
        self._offset = series[0].dataoffset if in_one_block else None
        self._pages: list[Page] = []
        if self._offset is not None:
            self._page_bytes = math.prod(self._page_shape) * self.dtype.itemsize
            check_extent(self._offset, self._page_bytes, num_pages, file_bytes, self._where)
        else:
            pages = [(page, one.keyframe) for one in series for page in one]
            if len(series) > 1:
                pages.sort(key=lambda pair: -1 if pair[0] is None else pair[0].index)
            if num_empty := check_pages(pages, num_pages, file_bytes, self._where):
                self.notes.append(f"{num_empty} empty tiles or strips, read as {first.nodata:g}")
            self._pages = [page for page, _ in pages if page is not None]
        self._describe(series[0])

    def page(self, number: int, region: tuple[slice, ...] | None = None) -> npt.NDArray[np.generic]:
        """Decode one page, or the tiles or strips of it that a part touches."""
        if self._offset is None:
            page = self._pages[number]
            if region is not None and page.compression not in _FAX and page.shape == self._page_shape:
                return self._part(page, region)
            decoded = self._fax(page) if page.compression in _FAX else page.asarray(maxworkers=1)
            whole = np.asarray(decoded).reshape(self._page_shape)
            return whole if region is None else whole[region]
        file, stored = self._tiff.filehandle, self.dtype.newbyteorder(self._tiff.byteorder)
        first, *others = region or tuple(slice(0, size) for size in self._page_shape)
        line_shape = self._page_shape[1:]
        line_samples, num_lines = math.prod(line_shape), first.stop - first.start
        offset = self._offset + number * self._page_bytes + first.start * line_samples * stored.itemsize
        with file.lock:
            lines = np.asarray(file.read_array(stored, num_lines * line_samples, offset))
        return lines.reshape(num_lines, *line_shape)[:, *others]

    def _part(self, page: Page, region: tuple[slice, ...]) -> npt.NDArray[np.generic]:
        """Decode the tiles or strips of a page that a part touches: tifffile shows them as the chunks of a Zarr."""
        import zarr  # takes a second, and nothing else of TIFF needs it

        store = page.aszarr(fillvalue=self._series[0].keyframe.nodata, maxworkers=1)
        with closing(store):
            return np.asarray(zarr.open_array(store, mode="r")[region])

    def close(self) -> None:
        """Close the file."""
        self._tiff.close()

    def _note_calibration(self, metadata: dict[str, object]) -> None:
        """Say where ImageJ shows other values than those that are stored, as it does for signed 16-bit ones."""
        named = ", ".join(f"{key}={metadata[key]}" for key in ("cf", "c0", "c1") if key in metadata)
        if named:
            self.notes.append(f"ImageJ shows its values calibrated ({named}); they are kept as stored")

    def _fax(self, page: Page) -> npt.NDArray[np.generic]:
        """Decode a page of CCITT fax data by libtiff: tifffile misreads what some encoders write, in silence.

        It also decodes all pages by the options of the first one.
        """
        file = self._tiff.filehandle
        with file.lock:
            file.seek(0)
            content = file.read()
        return np.asarray(imagecodecs.tiff_decode(content, index=page.index))

    def _follow_one_another(self, series: tifffile.TiffPageSeries) -> bool:
        """Return whether the data of a series' pages lie one behind the other, as far as the pages have headers.

        tifffile takes those of ImageJ files to do so, whatever the headers behind the first one say.
        """
        if series.dataoffset is None or series.kind != "imagej":
            return series.dataoffset is not None
        page_bytes = math.prod(self._page_shape) * self.dtype.itemsize
        starts = [self._tiff.pages[number].dataoffsets[0] for number in _numbers(series)]
        return starts == [series.dataoffset + number * page_bytes for number in range(len(starts))]

    def _main_series(self) -> list[tifffile.TiffPageSeries]:
        """Return the one image of the file, or its many images of one plane each, in the order of their pages.

        Thumbnails and masks that declare themselves (NewSubfileType) are left out, pyramids read at full size.
        """
        found = self._tiff.series
        check_subifds(found, self._where)
        series = [one for one in found if not (one.keyframe.is_reduced or one.keyframe.is_mask)] or list(found)
        if len(series) < len(found):
            self.notes.append(f"{len(found) - len(series)} thumbnails or masks beside the image left out")
        levels = [level.shape for one in series for level in one.levels[1:] if not level.keyframe.is_reduced]
        if levels:
            listed = "; ".join(str(shape) for shape in levels[:4])
            self.notes.append(f"smaller images beside it ({listed}) are taken for levels of a pyramid and left out")
        if len(series) > 1:
            kinds = {(one.keyframe.shape, one.dtype, one.keyframe.photometric) for one in series}
            if len(kinds) > 1 or any(one.kind != "generic" and len(one) > 1 for one in series):
                listed = "; ".join(f"{one.axes} {one.shape} {one.dtype}" for one in series[:4])
                raise DataError(
                    f"{len(series)} images in one file ({listed}{'; …' if len(series) > 4 else ''})",
                    expected="one stack, or planes of one size and type",
                    where=self._where,
                    remedy="save the image you mean as a file of its own; `--axes` cannot choose between them",
                )
            self.notes.append(f"{len(series)} images of one size in the file, read as planes")
        return series

    def _describe(self, series: tifffile.TiffPageSeries) -> None:
        tiff, first = self._tiff, series.keyframe
        samples = first.samplesperpixel if "S" in first.axes else 1
        rgb = first.photometric == tifffile.PHOTOMETRIC.RGB
        declared = bool(first.extrasamples) and first.extrasamples[-1] in (1, 2)
        by_tifffile = first.software.startswith("tifffile")
        named = series.kind not in ("generic", "uniform", "shaped") or "axes" in (tiff.shaped_metadata or ({},))[0]
        guessed = by_tifffile and not named  # it takes three or four of anything for RGB(A)
        if declared and not guessed and samples in (2, 4):
            self.alpha = "declared"
        else:
            self.alpha = "assumed" if samples == 4 and (rgb or declared) else ""
        # in ImageJ and OME files it takes the planes of a (Z, Y, X) array for channels
        as_channels = by_tifffile and series.kind in ("imagej", "ome") and self.axes == "CYX"
        self.guessed_channels = (guessed and rgb and first.planarconfig == 2 and samples in (3, 4)) or (
            as_channels and self.shape[0] > _MOST_CHANNELS_UNASKED
        )
        self.voxel_size_zyx_um: VoxelSize | None = None
        if series.kind == "ome" and tiff.ome_metadata is not None:
            self.voxel_size_zyx_um = ome_voxel_size(tiff.ome_metadata)
        elif tiff.is_imagej:
            self._note_calibration(tiff.imagej_metadata or {})
            tags = tiff.pages.first.tags
            resolution_yx = (tags.valueof("YResolution"), tags.valueof("XResolution"))
            self.voxel_size_zyx_um = imagej_voxel_size(tiff.imagej_metadata or {}, resolution_yx)


def _unnamed_pages(tiff: tifffile.TiffFile, headers: list[PageHeader]) -> list[int]:
    """Return the numbers of the pages that belong to no image, thumbnails and masks that declare themselves apart."""
    named = {number for one in tiff.series for level in one.levels for number in _numbers(level)}
    return [
        number
        for number, header in enumerate(headers)
        if number not in named and header.get(SUBFILE_TYPE, (0,)) == (0,)
    ]


def _numbers(series: tifffile.TiffPageSeries) -> list[int]:
    """Return the numbers, in the file's chain, of the pages that a series' shape takes in; SubIFDs have none."""
    first = series.keyframe
    num_pages = math.prod(series.shape) // max(1, math.prod(first.shape))
    if series.dataoffset is not None and isinstance(first.index, int):
        # the data of all pages follow one another, and not all need have a header
        return list(range(first.index, min(first.index + num_pages, len(first.parent.pages))))
    pages = [page.index for page in series if page is not None]
    return [index for index in pages[:num_pages] if isinstance(index, int)]


def _kept(letter: str, size: int) -> bool:
    return size > 1 or letter in "YX"
