"""What a model can be used on: a TIFF or PNG, an OME-Zarr image, or a folder of slices."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from stackseg.dataset.files.folder import FolderPages
from stackseg.dataset.files.pages import open_pages
from stackseg.dataset.files.stack import Stack
from stackseg.errors import DataError

_ZARR_METADATA = ("zarr.json", ".zgroup", ".zarray", ".zattrs")


def open_input(path: Path, *, axes: str | None = None, level: int = 0) -> Stack:
    """Open whatever can be segmented as a stack, of which planes or windows of planes are read.

    Parameters
    ----------
    path
        A TIFF or PNG, the folder of an OME-Zarr image of version 0.4 or 0.5, or a folder of slices, one plane each,
        which are taken in the order people count.
    axes
        What the dimensions longer than one are, in the file's order, such as "ZCYX"; overrides the metadata. Of a
        folder of slices, those of each file.
    level
        Of an OME-Zarr's pyramid; 0 is the full size.

    Raises
    ------
    DataError
        There is nothing, or no image, or a damaged one; slices differ; there is no such level.
    """
    if is_zarr(path):
        from stackseg.dataset.files.zarr_pages import ZarrPages  # zarr takes a second to import

        return Stack(path, open_source=partial(ZarrPages, path, level=level, axes=axes))
    if level:
        raise DataError(
            f"`--level {level}`",
            expected="an OME-Zarr image, which has levels",
            where=str(path),
            remedy="leave `--level` out",
        )
    if path.is_dir():
        return Stack(path, open_source=partial(FolderPages, path, axes=axes))
    return Stack(path, axes=axes, open_source=partial(open_pages, path, axes_given=axes is not None))


def is_zarr(path: Path) -> bool:
    """Return whether a folder is a Zarr group or array, or says so by its name."""
    return path.is_dir() and (path.suffix == ".zarr" or any((path / one).is_file() for one in _ZARR_METADATA))
