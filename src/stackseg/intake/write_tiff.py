"""Write stacks of planes as TIFF, plane by plane, whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import tifffile

from stackseg.atomic import atomic_file
from stackseg.dataset.files.axes import VoxelSize
from stackseg.errors import DataError, MachineError

CLASSIC_TIFF_BYTES = 2**32 - 2**25  # room for the page headers, which tifffile reserves as well
"""Up to here a file is a classic TIFF, from here on a BigTIFF."""
_HEADER_BYTES = 512  # of one page, amply


def write_stack(
    path: Path,
    planes: Iterable[npt.NDArray[np.generic]],
    *,
    num_planes: int,
    voxel_size_zyx_um: VoxelSize | None = None,
    compression: Literal["none", "deflate"] = "deflate",
    colours: Sequence[str] = (),
    rgb: bool = True,
    software: str | None = None,
) -> None:
    """Write planes (Y, X) or (Y, X, C) of one shape and type as a TIFF whose metadata give axes and voxel size back.

    The file is written under another name and then renamed, so that a failure leaves the old one. Three uint8 channels
    become RGB pages, other channels a page each; the description is ImageJ's, which Fiji and napari read; BigTIFF from
    4 GB of pixels on. Equal uncompressed input gives equal bytes.

    Parameters
    ----------
    path
        File to write or replace; its folder must exist.
    planes
        Drawn one at a time, and never held together.
    num_planes
        How many there are; headers come first.
    voxel_size_zyx_um
        Micrometres; None where unknown.
    compression
        "deflate", which all readers know, or "none".
    colours
        "#rrggbb" of the values 0, 1, …, for uint8 planes of class indices: Fiji and others draw them so, and the values
        stay what they are.
    rgb
        Whether three uint8 channels are red, green and blue.
    software
        What has written the file, in ASCII, for its tag of that name.

    Raises
    ------
    DataError
        The planes differ in shape or type, or their number is another.
    MachineError
        The disk is full, or the folder cannot be written to.
    """
    iterator = iter(planes)
    first = next(iterator, None)
    if first is None or num_planes < 1:
        raise DataError("no planes to write", expected="one at least", where=str(path))
    shape_yx, num_channels = first.shape[:2], first.shape[2] if first.ndim == 3 else 1
    dtype = np.dtype(np.uint8 if first.dtype == np.bool_ else first.dtype).newbyteorder("<")
    rgb = rgb and num_channels == 3 and dtype == np.uint8
    page_shape = (*shape_yx, 3) if rgb else shape_yx
    num_pages = num_planes if rgb else num_planes * num_channels
    num_bytes = num_pages * (int(np.prod(page_shape)) * dtype.itemsize + _HEADER_BYTES)
    voxel_z, voxel_y, voxel_x = voxel_size_zyx_um or (None, None, None)
    try:
        os.scandir(path.parent).close()  # a folder that is not there is a typing mistake, and not made
        with (
            atomic_file(path) as part,
            tifffile.TiffWriter(part, bigtiff=num_bytes > CLASSIC_TIFF_BYTES, byteorder="<") as writer,
        ):
            writer.write(
                _pages(first, iterator, num_planes, dtype=dtype, rgb=rgb, where=str(path)),
                shape=(num_pages, *page_shape),
                dtype=dtype,
                photometric="palette" if colours else "rgb" if rgb else "minisblack",
                colormap=colour_map(colours) if colours else None,
                compression="deflate" if compression == "deflate" else None,
                description=_description(num_planes, 1 if rgb else num_channels, voxel_size_zyx_um, voxel_z),
                resolution=(1 / voxel_x if voxel_x else 0, 1 / voxel_y if voxel_y else 0),
                resolutionunit="NONE",
                metadata=None,
                software=software or False,
            )
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> MachineError:
    """Return the error of a file that the disk does not take."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return MachineError(
        f"cannot be written: {error.strerror or error}",
        where=str(path),
        remedy="free some space" if full else "check that the folder exists and may be written to",
    )


def _pages(
    first: npt.NDArray[np.generic],
    others: Iterator[npt.NDArray[np.generic]],
    num_planes: int,
    *,
    dtype: np.dtype[np.generic],
    rgb: bool,
    where: str,
) -> Iterator[npt.NDArray[np.generic]]:
    """Yield the pages of all planes in order, checking that the planes are alike and as many as said."""
    plane: npt.NDArray[np.generic] | None = first
    for z in range(num_planes):
        if plane is None:
            raise DataError(f"{z} planes", expected=f"{num_planes}", where=where)
        if plane.shape != first.shape or plane.dtype != first.dtype:
            raise DataError(
                f"plane {z} is {plane.shape} {plane.dtype}",
                expected=f"{first.shape} {first.dtype} as plane 0",
                where=where,
                remedy="write planes of different size as single files",
            )
        page_yxc = np.atleast_3d(plane).astype(dtype, copy=False)
        plane = next(others, None)
        if plane is not None and z == num_planes - 1:
            raise DataError(f"more than {num_planes} planes", expected=f"{num_planes}", where=where)
        yield from [page_yxc] if rgb else (np.ascontiguousarray(page_yxc[:, :, c]) for c in range(page_yxc.shape[2]))


def colour_map(colours: Sequence[str]) -> npt.NDArray[np.uint16]:
    """Return a TIFF colour map (3, 256) of 16-bit red, green and blue; values without a colour are black."""
    map_c256 = np.zeros((3, 256), np.uint16)
    for value, colour in enumerate(colours):
        map_c256[:, value] = [257 * int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return map_c256


def _description(num_planes: int, num_channels: int, voxel_size: VoxelSize | None, voxel_z: float | None) -> str:
    """Return an ImageJ description: axes, and the z spacing in the unit of the resolution tags."""
    lines = ["ImageJ=1.54f", f"images={num_planes * num_channels}"]
    lines += [f"channels={num_channels}"] if num_channels > 1 else []
    lines += [f"slices={num_planes}"]
    lines += ["hyperstack=true", "mode=grayscale"] if num_channels > 1 else []
    lines += ["unit=micron"] if voxel_size else []
    lines += [f"spacing={voxel_z!r}"] if voxel_z else []
    return "\n".join([*lines, "loop=false", ""])
