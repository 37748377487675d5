"""What speaks against a TIFF file before its pages are decoded: cut off, corrupt, absurd, or not for segmentation.

tifffile reads a damaged file as far as it can and logs what it misses: that is refused here as an error. What it does
not notice, such as data beyond the end of the file, is checked for. Everything raises DataError.
"""

from __future__ import annotations

import logging
import math
import re
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import tifffile

from stackseg.errors import DataError

Page = tifffile.TiffPage | tifffile.TiffFrame

COPY_AGAIN = "copy or export the file again"
MAX_PAGE_SAMPLES = 2**31

# decoded bytes per stored byte that a codec can reach: none, LZW, deflate (two codes), PackBits; others know no bound
_MAX_RATIO = {1: 1, 5: 1400, 8: 1100, 32946: 1100, 32773: 64}
# tags without which pixels are misread: sizes and types, description, resolution, offsets and byte counts, SubIFDs,
# and those by which MetaMorph's stacks number their planes
_ESSENTIAL_TAGS = (256, 257, 258, 270, 273, 277, 279, 282, 283, 320, 324, 325, 330, 339, 347, 33628, 33629)
_TAG = re.compile(r"TiffTag (\d+)")

PageHeader = dict[int, tuple[int, ...]]
"""Values of some of a page's tags, by their number."""


class TellingTag(NamedTuple):
    """A tag that tells what pixels are or how they are stored: its name in messages, and what its absence means."""

    name: str
    default: tuple[int, ...]


SUBFILE_TYPE = 254
ORIENTATION = 274
MEANING = {
    SUBFILE_TYPE: TellingTag("kind (thumbnail, mask or neither, by NewSubfileType)", (0,)),
    258: TellingTag("bit depth", (1,)),
    262: TellingTag("photometric interpretation", ()),
    266: TellingTag("bit order", (1,)),
    ORIENTATION: TellingTag("orientation", (1,)),
    284: TellingTag("planar configuration", (1,)),
    320: TellingTag("palette", ()),
    338: TellingTag("meaning of extra samples", ()),
    339: TellingTag("sample format", (1,)),
}
"""Tags in which all pages that become planes have to agree."""
STORAGE = {
    259: TellingTag("compression", (1,)),
    317: TellingTag("predictor", (1,)),
    322: TellingTag("tile width", ()),
    323: TellingTag("tile length", ()),
}
"""Tags in which the pages of a series have to agree, for they are decoded by what the first one says."""
_TELLING = {*MEANING, *STORAGE}
_REDUCED_OR_MASK = 0b101
_WHOLE_BYTES_UNLIKE_NUMPY = (24, 40, 48, 56)
_PER_SAMPLE = (258, 339)
_UNSIGNED = {1: "B", 3: "H", 4: "I", 16: "Q"}  # TIFF's types of these numbers, and their codes in `struct`
_LONGEST_VALUE = 3 * 2**16  # the palette of 16-bit indices

# without a handler Python would print on stderr what tifffile logs while it decodes
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class _Complaints(logging.Handler):
    """Collects what tifffile logs in this thread; other threads may read other files."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message."""
        if record.thread == self._thread:
            self.found.append(record.getMessage())


@contextmanager
def refusing_complaints(where: str, *, metadata: bool) -> Iterator[None]:
    """Turn what tifffile logs about a damaged file into an error; `metadata` False lets misfitting metadata pass."""
    log, complaints = logging.getLogger("tifffile"), _Complaints()
    log.addHandler(complaints)
    log.setLevel(logging.WARNING)
    log.disabled = False  # the migrations of Optuna's storage disable every logger that is there
    try:
        yield
    finally:
        log.removeHandler(complaints)
    for found in complaints.found:
        tag = _TAG.search(found)
        if " series " in found and metadata:
            remedy = f"{COPY_AGAIN}, or say what its pages are with `--axes ZYX`"
            raise DataError(f"its metadata and its pages do not fit each other ({found})", where=where, remedy=remedy)
        # a damaged tag that no pixel depends on is no matter, nor is a GDAL_NODATA that is no number, nor a broken date
        harmless = any(word in found for word in (" series ", "GDAL_NODATA", "julianday"))
        if int(tag[1]) in _ESSENTIAL_TAGS if tag else not harmless:
            raise DataError(f"truncated or corrupt ({found})", where=where, remedy=COPY_AGAIN)


def page_headers(tiff: tifffile.TiffFile, where: str) -> list[PageHeader]:
    """Walk the chain of page headers and return of each the tags that say what its pixels are.

    The chain must stay within the file and end, which tifffile does not see to. NDPI files, whose headers are laid out
    otherwise, give none.
    """
    layout, file = tiff.tiff, tiff.filehandle
    if layout.is_ndpi:
        return []
    position, seen = (8 if layout.is_bigtiff else 4), set[int]()
    headers: list[PageHeader] = []
    while True:
        file.seek(position)
        link = file.read(layout.offsetsize)
        offset = struct.unpack(layout.offsetformat, link)[0] if len(link) == layout.offsetsize else -1
        if offset == 0 and seen:
            return headers
        if not 0 < offset <= file.size - layout.tagnosize or offset in seen:
            found = f"the link to page {len(seen)} is broken in a file of {file.size} bytes: truncated or corrupt"
            raise DataError(found, where=where, remedy=COPY_AGAIN)
        file.seek(offset)
        num_tags = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))[0]
        position = offset + layout.tagnosize + num_tags * layout.tagsize
        if position > file.size:
            found = f"the header of page {len(seen)} reaches beyond the end of the file ({file.size} bytes)"
            raise DataError(f"truncated or corrupt: {found}", where=where, remedy=COPY_AGAIN)
        seen.add(offset)
        headers.append(_telling_tags(tiff, file.read(num_tags * layout.tagsize)))


def _telling_tags(tiff: tifffile.TiffFile, tags: bytes) -> PageHeader:
    """Return the values of those tags of one page, from the bytes of all its tags, that tell what its pixels are."""
    layout, file = tiff.tiff, tiff.filehandle
    values: PageHeader = {}
    for start in range(0, len(tags), layout.tagsize):
        code, kind = struct.unpack_from(layout.tagformat1, tags, start)
        (count,) = struct.unpack_from(layout.offsetformat, tags, start + 4)
        if code not in _TELLING or kind not in _UNSIGNED:
            continue
        value = tags[start + layout.tagsize - layout.offsetsize : start + layout.tagsize]
        numbers = struct.Struct(f"{tiff.byteorder}{min(count, _LONGEST_VALUE)}{_UNSIGNED[kind]}")
        if numbers.size > layout.offsetsize:
            file.seek(struct.unpack(layout.offsetformat, value)[0])
            value = file.read(numbers.size)
        if len(value) >= numbers.size:
            found = numbers.unpack_from(value)
            values[code] = tuple(dict.fromkeys(found)) if code in _PER_SAMPLE else found
            if code == SUBFILE_TYPE:
                values[code] = (found[0] & _REDUCED_OR_MASK,)
    return values


def check_alike(
    headers: Sequence[PageHeader], pages: Sequence[int], tags: Mapping[int, TellingTag], where: str
) -> None:
    """Refuse a file of whose pages, by number, some say otherwise than the first what their pixels are."""
    for number in pages[1:]:
        for code, tag in tags.items():
            first, found = (headers[one].get(code, tag.default) for one in (pages[0], number))
            if found != first:
                raise DataError(
                    f"page {number} has another {tag.name} than page {pages[0]}",
                    expected="pages that are coded alike",
                    where=where,
                    remedy="save each kind as a file of its own, or convert all pages to one (Fiji: Image > Type)",
                )


def check_single_file(tiff: tifffile.TiffFile, where: str) -> None:
    """Refuse an OME-TIFF whose planes are spread over several files: this one holds only a part."""
    if not tiff.is_ome or not tiff.ome_metadata:
        return
    # each block of planes names its file, or is in this one
    blocks = re.findall(r"<(?:\w+:)?TiffData\b[^>]*?(?:/>|>(.*?)</(?:\w+:)?TiffData>)", tiff.ome_metadata, re.DOTALL)
    files = {"".join(re.findall(r"UUID\b[^>]*>\s*([^<\s]*)", block)) for block in blocks}
    if len(files) > 1:
        raise DataError(
            "an OME-TIFF spread over several files",
            expected="one file",
            where=where,
            remedy="open it in Fiji (Bio-Formats) and save it as one OME-TIFF",
        )


def check_subifds(series: Sequence[tifffile.TiffPageSeries], where: str) -> None:
    """Refuse images that hang below a page (SubIFDs) and are neither smaller versions of it nor masks.

    tifffile takes them for further pages.
    """
    pages = [page for one in series if one.kind == "generic" for page in one]
    if num_below := sum(
        isinstance(page, tifffile.TiffPage) and page.is_subifd and not page.subfiletype & _REDUCED_OR_MASK
        for page in pages
    ):
        raise DataError(
            f"{num_below} images below its pages (SubIFDs)",
            expected="pages that follow one another",
            where=where,
            remedy="save the images you mean as a file of their own",
        )


def check_header(first: tifffile.TiffPage, where: str) -> None:
    """Check pixel type and size of the pages."""
    if first.dtype is None or first.dtype.kind not in "buif":
        kind = first.dtype or f"sample format {first.sampleformat} with {first.bitspersample} bits"
        raise DataError(
            f"pixels of type {kind}",
            expected="integers, real numbers or 1-bit",
            where=where,
            remedy="convert it, such as complex numbers to their magnitude",
        )
    bits = first.bitspersample
    problem = "" if isinstance(bits, int) else f"samples of different depths ({bits} bits)"
    if bits in _WHOLE_BYTES_UNLIKE_NUMPY and first.dtype.kind != "f" and first.parent.byteorder == "<":
        problem = f"little-endian samples of {bits} bits: programs differ on the order of their bytes"
    if problem:
        raise DataError(problem, where=where, remedy="save it with 8, 16 or 32 bits a sample")
    samples = max(math.prod(first.shaped), first.tilewidth * first.tilelength * first.tiledepth)
    if not 0 < samples <= MAX_PAGE_SAMPLES:
        raise DataError(
            f"the header promises {' × '.join(map(str, first.shape))} pixels a page",
            expected=f"1 to {MAX_PAGE_SAMPLES} values",
            where=where,
            remedy="the file is corrupt, or too large to be read plane by plane; cut it into parts",
        )


def check_extent(offset: int, page_bytes: int, num_pages: int, file_bytes: int, where: str) -> None:
    """Check that uncompressed pages one after the other lie within the file."""
    present = max(file_bytes - offset, 0) // page_bytes
    if present < num_pages:
        raise _cut_off(present, num_pages, file_bytes, where)


def check_pages(
    pages: Sequence[tuple[Page | None, tifffile.TiffPage]], num_pages: int, file_bytes: int, where: str
) -> int:
    """Check that what pages point to lies within the file and can hold them; return the number of empty chunks.

    Each page comes with its keyframe, which has the properties that it shares with others.
    """
    num_empty = 0
    for number in range(num_pages):
        page, keyframe = pages[number] if number < len(pages) else (None, pages[0][1])
        if page is None:
            found = f"page {number} of {num_pages} is missing, though the metadata name it"
            raise DataError(found, where=where, remedy=COPY_AGAIN)
        num_chunks = math.prod(keyframe.chunked)
        chunks = list(zip(page.dataoffsets, page.databytecounts, strict=False))[:num_chunks]
        stored = [(start, length) for start, length in chunks if start or length]
        if len(chunks) < num_chunks or any(start + length > file_bytes or not start for start, length in stored):
            raise _cut_off(number, num_pages, file_bytes, where)
        num_empty += num_chunks - len(stored)
        num_stored = sum(length for _, length in stored)
        bits = keyframe.bitspersample
        num_decoded = math.prod(keyframe.shaped) * (bits if isinstance(bits, int) else 0) / 8
        ratio = _MAX_RATIO.get(keyframe.compression, math.inf)
        if num_decoded * len(stored) / num_chunks > ratio * max(num_stored, 1):
            size = " × ".join(map(str, keyframe.shape))
            found = f"page {number} promises {size} pixels and holds {num_stored} bytes: its header is corrupt"
            raise DataError(found, where=where, remedy=COPY_AGAIN)
    return num_empty


def _cut_off(number: int, num_pages: int, file_bytes: int, where: str) -> DataError:
    return DataError(
        f"truncated or corrupt: the data of page {number} of {num_pages} reach beyond the end of the file "
        f"({file_bytes} bytes)",
        where=where,
        remedy=COPY_AGAIN,
    )
