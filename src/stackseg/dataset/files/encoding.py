"""What the samples of a pixel mean, by the file's own word: grey values, colours, palette indices, plain channels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import tifffile

from stackseg.errors import DataError

Kind = Literal["grey", "inverted grey", "palette", "RGB", "RGBA", "channels"]

_INKS_AND_OTHERS = {
    5: "separated inks (CMYK)",
    6: "YCbCr colours",
    8: "CIELAB colours",
    9: "ICC Lab colours",
    10: "ITU Lab colours",
    32803: "the raw mosaic of a colour sensor",
    32844: "logarithmic luminance (LogL)",
    32845: "logarithmic colours (LogLuv)",
    34892: "raw sensor values",
}
_JPEG = (6, 7, 33007)
_MAY_BE_LOSSY = {
    22610: "JPEG XR",
    33003: "JPEG 2000",
    33004: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "JPEG",
    34927: "WebP",
    34934: "JPEG XR",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_TURNED = {
    2: "mirrored left to right",
    3: "turned by 180°",
    4: "mirrored top to bottom",
    5: "transposed",
    6: "turned by 90° clockwise",
    7: "transposed across the other diagonal",
    8: "turned by 90° counter-clockwise",
}


@dataclass(frozen=True)
class Encoding:
    """How a file codes its pixels; files of one set have to agree in it."""

    kind: Kind
    bits: int
    """Bits of a sample, as stored: 12-bit values in 16-bit samples say 16 or 12 as the file does."""
    palette: bytes = b""
    """Red, green and blue of 8 bits per index, for palette files."""
    may_be_lossy: bool = False
    """Whether the file's compression may have changed values."""

    @property
    def is_colour(self) -> bool:
        """Whether the channels of a pixel are one colour, as far as the file says."""
        return self.kind in ("RGB", "RGBA")

    def conflict(self, other: Encoding) -> str:
        """Return in which respect two files speak different languages, "" where they do not."""
        if {self.kind, other.kind} == {"RGB", "RGBA"}:
            return ""
        if self.kind != other.kind:
            return f"{self.kind}, not {other.kind}"
        shorter = min(len(self.palette), len(other.palette))  # PNG leaves out the colours behind the last one in use
        if self.palette[:shorter] != other.palette[:shorter]:
            return "a palette, not the same palette"
        return ""

    def of_channels(self, num_channels: int, *, samples: bool) -> Encoding:
        """Return the encoding of the channels that are left; `samples` says that they are samples of one pixel."""
        if num_channels == 1:
            return replace(self, kind="grey") if self.is_colour or self.kind == "channels" else self
        if samples and self.is_colour and num_channels == 3:
            return replace(self, kind="RGB")
        return self if samples and self.kind == "RGBA" and num_channels == 4 else replace(self, kind="channels")


def tiff_encoding(page: tifffile.TiffPage, where: str) -> tuple[Encoding, list[str]]:
    """Return how a TIFF page codes its pixels, with alpha still among the colours, and what a user should hear of it.

    Raises
    ------
    DataError
        Its samples are neither grey values, RGB, palette indices nor plain channels.
    """
    photometric, samples = int(page.photometric), int(page.samplesperpixel)
    notes: list[str] = []
    by_jpeg = page.compression in _JPEG and page.planarconfig == 1 and not page.extrasamples
    if photometric in _INKS_AND_OTHERS and not (photometric == 6 and by_jpeg and samples == 3):
        _refuse(_INKS_AND_OTHERS[photometric], where)
    if photometric not in (0, 1, 2, 3, 4, 6):
        _refuse(f"samples of an unknown kind (photometric interpretation {photometric})", where)
    if page.compression == 33003:
        _refuse("YCbCr colours", where)
    if (photometric == 2 and samples < 3) or (photometric == 3 and samples > 1):
        _refuse(f"{'RGB' if photometric == 2 else 'palette indices'} with {samples} samples a pixel", where)
    if photometric == 6:
        notes.append("stored as YCbCr, read as RGB")
    if page.compression in _JPEG:
        notes.append("JPEG-compressed: values are not exact")
    elif page.compression in _MAY_BE_LOSSY:
        notes.append(f"compressed by {_MAY_BE_LOSSY[page.compression]}, which may be lossy: values may not be exact")
    lossy = page.compression in (*_JPEG, *_MAY_BE_LOSSY)
    bits = int(page.bitspersample)
    if photometric == 3:
        return replace(palette_encoding(_colours(page), bits, notes, where), may_be_lossy=lossy), notes
    if photometric in (2, 6):
        alpha = samples == 4 and tuple(page.extrasamples)[-1:] in ((1,), (2,))
        return Encoding("RGBA" if alpha else "RGB", bits, may_be_lossy=lossy), notes
    if photometric == 0 and page.tags.get(262) is not None:
        notes.append("stored as MinIsWhite (0 is drawn white); values are kept as stored")
        return Encoding("inverted grey" if samples == 1 else "channels", bits, may_be_lossy=lossy), notes
    return Encoding("grey" if samples == 1 else "channels", bits, may_be_lossy=lossy), notes


def palette_encoding(palette: bytes, bits: int, notes: list[str], where: str) -> Encoding:
    """Return the encoding of indices into a palette, and note it; a ramp of grey makes them grey values."""
    if not palette:
        _refuse("palette indices without a palette", where)
    colours_n3 = np.frombuffer(palette, np.uint8).reshape(-1, 3).astype(np.int64)
    ramp_n = np.rint(np.arange(2**bits) * 255 / (2**bits - 1))[: len(colours_n3)] if bits <= 8 else np.zeros(0)
    is_ramp = len(ramp_n) == len(colours_n3) and bool((np.abs(colours_n3 - ramp_n[:, None]) <= 1).all())
    if not is_ramp or bits < 8:
        notes.append("palette image: pixel values are indices into its colours")
    return Encoding("grey", bits) if is_ramp else Encoding("palette", bits, palette)


def check_orientation(orientation: object, where: str) -> None:
    """Raise DataError where a file asks to be turned or mirrored: programs differ on whether they do it.

    An image that was turned and a mask that was not, or the other way round, would be trained on in silence.
    """
    if orientation in _TURNED:
        raise DataError(
            f"it is to be shown {_TURNED[int(str(orientation))]} (its orientation is {orientation})",
            expected="rows from the top and columns from the left (orientation 1), for images and masks alike",
            where=where,
            remedy="save it as you see it, or set its orientation to 1 if image and mask fit as they are stored "
            "(`tiffset -s 274 1 FILE`)",
        )


def _refuse(found: str, where: str) -> None:
    raise DataError(
        found,
        expected="grey values, RGB or a palette",
        where=where,
        remedy="save it as RGB (Fiji: Image > Type > RGB Color) or as grey values",
    )


def _colours(page: tifffile.TiffPage) -> bytes:
    """Return the palette of a page as 8-bit red, green and blue; some writers leave the upper byte of each empty."""
    if page.colormap is None:
        return b""
    colours_3n = np.asarray(page.colormap, np.uint16)
    return (colours_3n // (256 if colours_3n.max() > 255 else 1)).T.astype(np.uint8).tobytes()
