"""Images as they come in a request: files in memory, whose headers are checked before anything is decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from stackseg.dataset.files.pages import ImageBytes
from stackseg.dataset.files.stack import Plane, Stack, open_stack
from stackseg.errors import DataError

_PLANES_KEPT = 8


class ReceivedImage:
    """An open image; a plane that is read again soon is not decoded again."""

    def __init__(self, stack: Stack) -> None:
        self.info = stack.info
        self._plane = lru_cache(_PLANES_KEPT)(stack.plane)

    def __len__(self) -> int:
        return self.info.num_planes

    def plane(self, z: int) -> Plane:
        """Return plane z as (Y, X, C) in its raw type; it is not to be changed."""
        return self._plane(z)


@contextmanager
def open_image(image: bytes, max_megapixels: float, name: str, *, passes: int = 1) -> Iterator[ReceivedImage]:
    """Open an image file held in memory.

    Parameters
    ----------
    image
        A TIFF or PNG file. Nothing but these bytes is ever opened.
    max_megapixels
        Most pixels, over all planes and channels, by the file's header.
    name
        What errors call it.
    passes
        How often each pixel goes through the network: it counts as often.

    Raises
    ------
    DataError
        It is no image, damaged, or too large.
    """
    with naming(name), open_stack(ImageBytes(image, name)) as stack:
        info = stack.info
        megapixels = info.num_planes * info.shape_yx[0] * info.shape_yx[1] * info.num_channels * passes / 1e6
        if megapixels > max_megapixels:
            counted = "planes and channels" if passes == 1 else f"planes, channels and the {passes} turns of tta"
            raise DataError(
                f"{megapixels:.1f} megapixels over all {counted}",
                expected=f"at most {max_megapixels:g}",
                remedy="send it plane by plane, as `stackseg segment-remote` does, or in parts",
            )
        yield ReceivedImage(stack)


@contextmanager
def naming(image: str) -> Iterator[None]:
    """Name the image in an error that names a plane of it at most."""
    try:
        yield
    except DataError as error:
        if image in error.where:
            raise
        where = f"{image}, {error.where}" if error.where else image
        raise DataError(error.found, expected=error.expected, where=where, remedy=error.remedy) from None
