"""A stack as single files of one plane each, and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from natsort import natsorted

from stackseg.atomic import atomic_folder
from stackseg.dataset.files.stack import Stack, StackInfo, open_stack
from stackseg.dataset.specimens import list_images
from stackseg.errors import DataError
from stackseg.intake.write_tiff import write_stack


def extract_planes(stack: Stack, folder: Path, planes: range, progress: Callable[[int, int], None]) -> None:
    """Write planes of a stack as NAME_0000.tif, … into a folder, which is replaced; the numbers are those in the stack.

    Pixels, type and channels stay as they are, and each file says the voxel size. Palettes and RGB of 8 bits stay
    colours; of other colours the channels are written, a page each.
    """
    info = stack.info
    digits = len(str(info.num_planes - 1))
    with atomic_folder(folder) as temporary:
        for done, z in enumerate(planes, start=1):
            write_stack(
                temporary / f"{info.path.stem}_{z:0{digits}}.tif",
                [stack.plane(z)],
                num_planes=1,
                voxel_size_zyx_um=info.voxel_size_zyx_um,
                colours=_palette(info),
            )
            progress(done, len(planes))


def is_extracted(name: str, stack: Path) -> bool:
    """Tell whether a file has a name that `extract_planes` gives to planes of this stack."""
    return re.fullmatch(rf"{re.escape(stack.stem)}_\d+\.tif", name) is not None


def assemble_planes(folder: Path, path: Path, progress: Callable[[int, int], None]) -> tuple[StackInfo, int]:
    """Write the files of a folder as one stack, in the order in which people count; return what one has, and how many.

    Pixels, type, channels, palette and voxel size stay as they are.

    Raises
    ------
    DataError
        A file holds several planes, or differs from the first one in any of these: both are named.
    """
    files = natsorted(list_images(folder), key=lambda one: one.name)
    with open_stack(files[0]) as first:
        info = first.info

    def planes() -> Iterator[npt.NDArray[np.generic]]:
        for done, file in enumerate(files, start=1):
            with open_stack(file) as stack:
                _require_alike(info, stack.info)
                yield stack.plane(0)
            progress(done, len(files))

    write_stack(
        path,
        planes(),
        num_planes=len(files),
        voxel_size_zyx_um=info.voxel_size_zyx_um,
        colours=_palette(info),
    )
    return info, len(files)


def _require_alike(first: StackInfo, other: StackInfo) -> None:
    if other.num_planes > 1:
        raise DataError(f"{other.num_planes} planes", expected="one plane in each file", where=str(other.path))
    kinds = other.encoding.conflict(first.encoding)
    for found, expected in (
        (_size(other), _size(first)),
        (other.dtype, first.dtype),
        (f"{other.num_channels} channels", f"{first.num_channels} channels"),
        (kinds or first.encoding.kind, first.encoding.kind),
        (f"voxel size {other.voxel_size_zyx_um}", f"voxel size {first.voxel_size_zyx_um}"),
    ):
        if found != expected:
            raise DataError(
                found,
                expected=f"{expected}, as {first.path} has",
                where=str(other.path),
                remedy="set the files aside that do not belong to the stack",
            )


def _size(info: StackInfo) -> str:
    return f"{info.shape_yx[0]}×{info.shape_yx[1]} pixels"


def _palette(info: StackInfo) -> list[str]:
    """Return the colours of the values 0, 1, … of planes of uint8 indices, else none."""
    palette = info.encoding.palette if info.dtype == "uint8" else b""
    return [f"#{palette[at : at + 3].hex()}" for at in range(0, len(palette), 3)]
