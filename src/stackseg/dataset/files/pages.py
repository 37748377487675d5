"""Image files as pages that are decoded one at a time: TIFF (see `tiff.py`) and PNG, known by their content."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image

from stackseg.dataset.files.axes import VoxelSize
from stackseg.dataset.files.encoding import Encoding, Kind, check_orientation, palette_encoding
from stackseg.dataset.files.tiff import TiffPages
from stackseg.dataset.files.tiff_validation import COPY_AGAIN, ORIENTATION
from stackseg.errors import DataError, one_line

Region = tuple[slice, ...]
"""A part of a page: start and stop for each of its dimensions."""

_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class ImageBytes:
    """An image file in memory, and what errors call it; opened like a path."""

    content: bytes
    name: str

    def __str__(self) -> str:
        return self.name

    def open(self, mode: str) -> BinaryIO:
        """Return the bytes as a file to read."""
        return io.BytesIO(self.content)


class PageSource(Protocol):
    """An open file: its dimensions, and its pages by number."""

    axes: str
    """tifffile's letters of the dimensions longer than one, Y and X always among them."""
    shape: tuple[int, ...]
    num_page_axes: int
    """How many of the last dimensions one page holds; the ones before number the pages."""
    dtype: np.dtype[np.generic]
    alpha: str
    """"declared" or "assumed" where the last sample is an alpha channel, else empty."""
    encoding: Encoding
    """What the samples of a pixel mean, alpha among them."""
    guessed_channels: bool
    """Whether what the file calls colours or channels may as well be grey planes."""
    voxel_size_zyx_um: VoxelSize | None
    notes: list[str]

    def page(self, number: int, region: Region | None = None) -> npt.NDArray[np.generic]:
        """Decode one page or a part of it, its dimensions as in `shape[-num_page_axes:]`, in native byte order."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def holds_image(path: Path) -> bool:
    """Return whether a file begins as a TIFF or PNG does."""
    with path.open("rb") as file:
        return file.read(32).startswith((*_TIFF_HEADS, _PNG_HEAD))


def open_pages(path: Path | ImageBytes, *, axes_given: bool = False) -> PageSource:
    """Open a TIFF or PNG file, by its content and not its name.

    `axes_given` says that the user names the dimensions, so that metadata which do not fit the pages are no matter.

    Raises
    ------
    DataError
        The file is missing, empty, no image, truncated, corrupt, or of a kind that cannot be segmented.
    """
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except FileNotFoundError:
        raise DataError("no such file", where=str(path), remedy="check the name") from None
    except IsADirectoryError:
        raise DataError("a folder", expected="an image file", where=str(path), remedy="name one file") from None
    except OSError as error:
        raise DataError(
            f"it cannot be read: {error.strerror}", where=str(path), remedy="check its permissions"
        ) from None
    if not head:
        raise DataError("an empty file (0 bytes)", expected="a TIFF or PNG image", where=str(path), remedy=COPY_AGAIN)
    if head.startswith(_TIFF_HEADS):
        content = path if isinstance(path, Path) else path.open("rb")
        return TiffPages(content, where=str(path), axes_given=axes_given)
    if head.startswith(_PNG_HEAD):
        return PngPage(path, head)
    if head.startswith(b"version https://git-lfs"):
        raise DataError("a Git LFS pointer", expected="the image", where=str(path), remedy="run `git lfs pull`")
    raise DataError(
        "neither TIFF nor PNG",
        expected="a TIFF or PNG image",
        where=str(path),
        remedy="save it as TIFF (Fiji: File > Save As > Tiff)",
    )


class PngPage:
    """A PNG file as one page; implements `PageSource`. Sixteen-bit colours are kept, palettes stay indices."""

    def __init__(self, path: Path | ImageBytes, head: bytes) -> None:
        self._path = path
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # 89 megapixels are no bomb here
                with path.open("rb") as file, Image.open(file, formats=["PNG"]) as picture:
                    mode, (width, height), num_frames = picture.mode, picture.size, getattr(picture, "n_frames", 1)
                    palette = bytes(picture.palette.palette) if picture.palette is not None else b""
                    transparent = "transparency" in picture.info
                    picture.verify()
                # an orientation may stand behind the pixels, and in other places than EXIF
                with path.open("rb") as file, Image.open(file, formats=["PNG"]) as picture:
                    orientation = picture.getexif().get(ORIENTATION)
        except Image.DecompressionBombError:
            raise DataError(
                "a PNG of more than 178 megapixels", where=str(path), remedy="save it as tiled TIFF"
            ) from None
        except Exception as error:  # whatever a corrupt file makes Pillow raise
            raise DataError(
                f"a PNG that cannot be read ({one_line(error)})", where=str(path), remedy=COPY_AGAIN
            ) from error
        if num_frames > 1:
            raise DataError(
                f"an animated PNG of {num_frames} frames", where=str(path), remedy="save them as TIFF pages"
            )
        check_orientation(orientation, str(path))
        bit_depth, colour_type = head[24], head[25]
        num_samples = {2: 3, 4: 2, 6: 4}.get(colour_type, 1)
        # Pillow cuts 16-bit colours down to 8 bits
        self._deep_colour = bit_depth == 16 and colour_type != 0
        self.axes = "YXS" if num_samples > 1 else "YX"
        self.shape: tuple[int, ...] = (height, width, num_samples) if num_samples > 1 else (height, width)
        self.num_page_axes = len(self.shape)
        self.dtype = np.dtype("?" if mode == "1" else "u2" if bit_depth == 16 else "u1")
        self.alpha = "declared" if num_samples in (2, 4) else ""
        self.guessed_channels = False
        self.voxel_size_zyx_um: VoxelSize | None = None  # PNG knows resolution for print only
        self.notes = ["its transparent colour or palette entries are read as if opaque"] if transparent else []
        kinds: dict[int, Kind] = {2: "RGB", 4: "channels", 6: "RGBA"}
        self.encoding = (
            palette_encoding(palette, bit_depth, self.notes, str(path))
            if colour_type == 3
            else Encoding(kinds.get(colour_type, "grey"), bit_depth)
        )
        # Pillow stretches grey values of 2 and 4 bits over 0 to 255
        self._stretched = 255 // (2**bit_depth - 1) if colour_type == 0 and 1 < bit_depth < 8 else 1

    def page(self, number: int, region: Region | None = None) -> npt.NDArray[np.generic]:
        """Decode the picture; its number is 0."""
        return self._decoded() if region is None else self._decoded()[region]

    def _decoded(self) -> npt.NDArray[np.generic]:
        if self._deep_colour:
            with self._path.open("rb") as file:
                decoded = np.asarray(imagecodecs.png_decode(file.read()))
            return decoded[..., : self.shape[-1]]  # it makes a transparent colour an alpha channel
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with self._path.open("rb") as file, Image.open(file, formats=["PNG"]) as picture:
                if self.dtype == np.bool_:
                    return np.asarray(
                        np.asarray(picture.convert("L")) > 0
                    )  # Pillow's own bytes are 0 and 255 even as bool
                values = np.asarray(picture).astype(self.dtype, copy=False)
                return values if self._stretched == 1 else np.asarray(values // self._stretched, self.dtype)

    def close(self) -> None:
        """Do nothing: the file is opened for each reading."""
