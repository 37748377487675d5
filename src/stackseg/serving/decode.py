"""Images as they come in a request: bytes, checked against limits by their headers before anything is decoded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stackseg.dataset.files.stack import Stack, open_stack
from stackseg.errors import DataError, StacksegError


def called(number: int, num_images: int) -> str:
    """Return what a refusal calls one of the images of a request, counted from 1."""
    return "the image" if num_images == 1 else f"image {number} of {num_images}"


@contextmanager
def received(image: bytes, max_megapixels: float, name: str) -> Iterator[Stack]:
    """Open an image file held in memory.

    Parameters
    ----------
    image
        A TIFF or PNG file. Nothing but these bytes is ever opened.
    max_megapixels
        Most pixels, over all planes and channels, by the file's header.
    name
        What errors call it.

    Raises
    ------
    DataError
        It is no image, damaged, or too large. The message names no file of this machine.
    """
    with tempfile.TemporaryDirectory(prefix="stackseg-") as folder:
        path = Path(folder) / "image"
        path.write_bytes(image)
        try:
            with open_stack(path) as stack:
                info = stack.info
                megapixels = info.num_planes * info.shape_yx[0] * info.shape_yx[1] * info.num_channels / 1e6
                if megapixels > max_megapixels:
                    raise DataError(
                        f"{megapixels:.1f} megapixels over all planes and channels",
                        expected=f"at most {max_megapixels:g}",
                        remedy="send it plane by plane, as `stackseg segment-remote` does, or in parts",
                    )
                yield stack
        except StacksegError as error:
            found, expected, where, remedy = (
                text.replace(str(path), name) for text in (error.found, error.expected, error.where, error.remedy)
            )
            if name not in where:
                where = f"{name}, {where}" if where else name
            raise type(error)(found, expected=expected, where=where, remedy=remedy) from None
