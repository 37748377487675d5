"""Read and check stacks of planes, one plane at a time, whatever their file calls its dimensions."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from stackseg.dataset.files.axes import VoxelSize, name_axes, refuse_ambiguous_channels
from stackseg.dataset.files.encoding import Encoding
from stackseg.dataset.files.pages import ImageBytes, PageSource, Region, open_pages
from stackseg.dataset.files.tiff_validation import COPY_AGAIN
from stackseg.errors import DataError, one_line

Plane = npt.NDArray[np.generic]
_ALL = slice(None)


@dataclass(frozen=True)
class StackInfo:
    """What an image file holds."""

    path: Path
    """The file; of one in memory the name that errors call it."""
    num_planes: int
    shape_yx: tuple[int, int]
    num_channels: int
    """Channels or colour samples; a constant alpha channel is not counted."""
    dtype: str
    """NumPy's name of the stored type; "bool" for 1-bit, whose planes are uint8 of 0 and 1."""
    axes: str
    """The file's dimensions in its own order: Z planes, C channels, S colour samples, Y rows, X columns."""
    encoding: Encoding
    """What the samples of a pixel mean, a dropped alpha channel apart."""
    voxel_size_zyx_um: VoxelSize | None
    """Micrometres, from OME or ImageJ metadata; resolution tags alone are for printers and not believed."""
    notes: tuple[str, ...]
    """What a user should hear about the file."""


class Stack:
    """A file as a sequence of planes (Y, X, C) in their raw type, decoded one at a time.

    Values are as stored, also where MinIsWhite or a palette changes how they are drawn: so do Fiji, napari and
    scikit-image. It may be pickled and used after a fork: each process opens the file for itself. A file of one plane
    is open only while it is read, so that a folder of thousands costs no file handles; one in memory stays open, and so
    does what `open_source` opens: it is called again after `close` and in each process.
    """

    info: StackInfo
    _source: PageSource | None = None
    _owner: int = 0
    _volume: Plane | None = None

    def __init__(
        self,
        path: Path | ImageBytes,
        *,
        axes: str | None = None,
        open_source: Callable[[], PageSource] | None = None,
    ) -> None:
        self._path = path
        self._open = open_source or partial(open_pages, path, axes_given=axes is not None)
        source = self._opened()
        self._letters = _letters(source, path, axes)
        self._num_planes = source.shape[self._letters.index("Z")] if "Z" in self._letters else 1
        self._num_channels = source.shape[self._letters.index("C")] if "C" in self._letters else 1
        notes = list(source.notes)
        samples = self._num_channels > 1 and source.axes[self._letters.index("C")] == "S"
        if samples and source.alpha:
            self._num_channels, note = self._without_alpha(source)
            notes.append(note)
        self.info = StackInfo(
            path=Path(str(path)),
            num_planes=self._num_planes,
            shape_yx=(source.shape[self._letters.index("Y")], source.shape[self._letters.index("X")]),
            num_channels=self._num_channels,
            dtype=source.dtype.name,
            axes="".join(
                "S" if was == "S" and now == "C" else now for was, now in zip(source.axes, self._letters, strict=True)
            ),
            encoding=source.encoding.of_channels(self._num_channels, samples=samples),
            voxel_size_zyx_um=source.voxel_size_zyx_um,
            notes=tuple(notes),
        )
        self._stays_open = self._num_planes > 1 or isinstance(path, ImageBytes) or open_source is not None
        if not self._stays_open:
            self.close()

    def __len__(self) -> int:
        return self._num_planes

    def plane(self, z: int) -> Plane:
        """Return plane z as (Y, X, C) in its raw type, native byte order.

        Raises
        ------
        DataError
            The data of this plane cannot be decoded, or hold NaN or infinity.
        IndexError
            There is no such plane.
        """
        return self.window(z, _ALL, _ALL)

    def window(self, z: int, rows: slice, columns: slice) -> Plane:
        """Return a part of plane z as (Y, X, C); the slices count pixels, with a step of 1.

        Only the chunks that it touches are decoded of OME-Zarr, and only the tiles or strips of TIFF. A PNG is decoded
        whole, and so are fax pages and planes that are no pages of their own.

        Raises
        ------
        DataError
            What it touches cannot be decoded, or holds NaN or infinity.
        IndexError
            There is no such plane.
        """
        if self._stays_open:
            image_yxc = self._gather(self._opened(), z, rows, columns)
        else:
            with closing(self._open()) as source:
                image_yxc = self._gather(source, z, rows, columns)
        check_finite(image_yxc, f"{self._path} plane {z}")
        return np.ascontiguousarray(image_yxc[:, :, : self._num_channels])

    def close(self) -> None:
        """Close the file; the next plane opens it again."""
        if self._source is not None:
            self._source.close()
        self._source = self._volume = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None, "_volume": None}

    def _opened(self) -> PageSource:
        if self._source is None or self._owner != os.getpid():
            self.close()  # a forked process shares the file's position with its parent, and needs a file of its own
            self._source, self._owner = self._open(), os.getpid()
        return self._source

    def _gather(self, source: PageSource, z: int, rows: slice = _ALL, columns: slice = _ALL) -> Plane:
        """Decode the pages of one plane, as far as they are asked for, and turn them into (Y, X, C), alpha included."""
        if not 0 <= z < self._num_planes:
            raise IndexError(f"plane {z} of a stack of {self._num_planes}")
        num_grid = len(source.shape) - source.num_page_axes
        letters, grid, on_page = self._letters, source.shape[:num_grid], self._letters[num_grid:]
        asked = {"Y": rows, "X": columns}
        region: Region | None = None
        if asked != {"Y": _ALL, "X": _ALL} and set("YX") <= set(on_page) and "Z" not in on_page:
            region = tuple(
                slice(*asked.get(letter, _ALL).indices(size)[:2])
                for letter, size in zip(on_page, source.shape[num_grid:], strict=True)
            )
            rows = columns = _ALL
        numbers = np.arange(int(np.prod(grid, dtype=np.int64))).reshape(grid)
        if "Z" in letters[:num_grid]:
            numbers = np.take(numbers, [z], axis=letters.index("Z")).squeeze(letters.index("Z"))
            letters = letters.replace("Z", "")
        block = self._volume
        if block is None:
            try:
                pages = [source.page(int(number), region) for number in numbers.ravel()]
            except DataError:
                raise  # a file of a folder says for itself what it lacks
            except Exception as error:  # whatever a codec raises on corrupt data
                raise DataError(
                    f"its data cannot be decoded ({one_line(error)})",
                    where=f"{self._path} plane {z}",
                    remedy=f"the file is corrupt; {COPY_AGAIN}",
                ) from error
            block = (pages[0] if len(pages) == 1 else np.stack(pages)).reshape(*numbers.shape, *pages[0].shape)
        if "Z" in letters:
            self._volume = block  # planes that are no pages of their own are decoded once, all together
            block = np.take(block, z, axis=letters.index("Z"))
            letters = letters.replace("Z", "")
        order = [letters.index(letter) for letter in "YXC" if letter in letters]
        image_yxc = block.transpose(order).reshape(
            block.shape[order[0]], block.shape[order[1]], block.shape[order[2]] if len(order) == 3 else 1
        )
        image_yxc = image_yxc[rows, columns]
        return image_yxc.view(np.uint8) if image_yxc.dtype == np.bool_ else image_yxc

    def _without_alpha(self, source: PageSource) -> tuple[int, str]:
        """Return the number of channels without a constant alpha, and what to say.

        All planes are looked at until one varies. A fourth sample that the file does not declare to be alpha is taken
        for one only where it is opaque throughout, for it may be a channel that holds nothing.
        """
        assumed = source.alpha == "assumed"
        opaque = 1.0 if source.dtype.kind == "f" else 2.0 ** (8 * source.dtype.itemsize) - 1
        first: float | None = None
        for z in range(self._num_planes):
            alpha_yx = self._gather(source, z)[:, :, -1]
            first = float(alpha_yx.flat[0]) if first is None else first
            if (alpha_yx != first).any() or (assumed and first != opaque):
                found = "fourth sample is no opaque alpha" if assumed else "alpha varies"
                return self._num_channels, f"its {found} (plane {z}) and is kept as a channel"
        return self._num_channels - 1, f"constant alpha channel ({first:g}) dropped"


def open_stack(path: Path | ImageBytes, *, axes: str | None = None) -> Stack:
    """Open a TIFF or PNG file as a stack; only headers are read, except to see whether an alpha channel is constant.

    Plain pages without metadata are planes, axes and voxel size come from OME or ImageJ metadata, a pyramid is read at
    full size, thumbnails that declare themselves are left out. All integer, real and 1-bit types are read as they are.

    Parameters
    ----------
    path
        The file, or its bytes; its content counts, not its name.
    axes
        What the dimensions longer than one are, in the file's order, such as "ZCYX"; overrides the metadata.

    Raises
    ------
    DataError
        The file is missing, empty, no image, truncated, corrupt, of a type that cannot be segmented, or its
        dimensions are ambiguous (the message names `--axes`).
    """
    return Stack(path, axes=axes)


def _letters(source: PageSource, path: Path | ImageBytes, option: str | None) -> str:
    """Return Z, C, Y or X for each dimension of the file."""
    if option is None and source.guessed_channels:
        refuse_ambiguous_channels(source.axes, source.shape, where=str(path))
    return name_axes(source.axes, source.shape, where=str(path), option=option).replace("S", "C")


def check_finite(plane: Plane, where: str) -> None:
    """Raise DataError if a floating-point plane holds NaN or infinity, with their number."""
    if plane.dtype.kind == "f" and (num_bad := plane.size - int(np.isfinite(plane).sum())):
        raise DataError(
            f"{num_bad} of {plane.size} pixels are NaN or infinite",
            expected="finite numbers",
            where=where,
            remedy="replace them, in Fiji by Process > Math > NaN Background or Process > Filters > Remove NaNs",
        )
