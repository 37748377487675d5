"""Sections along all three axes of a stack, averaged: what a network of planes says of a volume."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO

import numpy as np
import numpy.typing as npt
from torch import Tensor, from_numpy

from stackseg.dataset.channels import context_indices
from stackseg.dataset.files.axes import VoxelSize
from stackseg.errors import DataError

LARGEST_RATIO = 1.2
"""Of the sides of a voxel: beyond it, things look another shape in the sections across."""
_AXES = ("xy", "xz", "yz")


def require_isotropic(voxel_size_zyx_um: VoxelSize | None, where: str) -> None:
    """Raise DataError where sections across the planes are known to be at another scale than the planes."""
    sides = voxel_size_zyx_um or (None, None, None)
    known = [side for side in sides if side is not None]
    if len(known) == len(sides) and max(known) > LARGEST_RATIO * min(known):
        z, y, x = sides
        raise DataError(
            f"voxels of {z:g} × {y:g} × {x:g} µm (z, y, x)",
            expected="equal sides, for the mean over xy, xz and yz",
            where=where,
            remedy="segment the planes alone: set inference.orthogonal to false, or leave --orthogonal out",
        )


def mean_over_sections(
    num_planes: int,
    planes: Sequence[int],
    image_of: Callable[[int], npt.NDArray[np.float32]],
    context_slices: int,
    compute: Callable[[npt.NDArray[np.float32]], Tensor],
) -> Iterator[Tensor]:
    """Yield for some planes of a stack the mean of what is computed of its xy, xz and yz sections.

    The volume and what is computed of it lie in files without a name, not in memory.

    Parameters
    ----------
    num_planes, planes
        Of the stack, and those that are wanted.
    image_of
        A plane (Y, X, C) as the network wants it; that is also how sections across are standardised.
    context_slices
        Neighbours at each side that a section comes with, along whichever axis.
    compute
        Section (A, B, I) → values (V, A, B).

    Yields
    ------
    Tensor
        Values (V, Y, X).

    Raises
    ------
    DataError
        There is one plane only, or planes of different sizes.
    """
    if num_planes == 1:
        raise DataError(
            "one plane", expected="a stack, for the mean over xy, xz and yz", remedy="segment the whole stack"
        )
    with tempfile.TemporaryFile() as images, tempfile.TemporaryFile() as values:
        volume_zyxc = _volume(images, num_planes, image_of)
        wanted, total = list(planes), None
        for axis in range(len(_AXES)):
            sections = np.moveaxis(volume_zyxc, axis, 0)
            for place in wanted if axis == 0 else range(len(sections)):
                seen = context_indices(place, len(sections), context_slices)
                found_vab = compute(np.concatenate([sections[one] for one in seen], axis=2)).numpy(force=True)
                if total is None:
                    shape = (len(wanted), len(found_vab), *volume_zyxc.shape[1:3])
                    total = np.memmap(values, np.float32, "w+", shape=shape)
                if axis == 0:
                    total[wanted.index(place)] = found_vab
                elif axis == 1:
                    total[:, :, place, :] += found_vab[:, wanted].transpose(1, 0, 2)
                else:
                    total[:, :, :, place] += found_vab[:, wanted].transpose(1, 0, 2)
        for plane_vyx in () if total is None else total:
            yield from_numpy(plane_vyx / np.float32(len(_AXES)))


def _volume(
    file: IO[bytes], num_planes: int, image_of: Callable[[int], npt.NDArray[np.float32]]
) -> npt.NDArray[np.float32]:
    first_yxc = image_of(0)
    volume_zyxc = np.memmap(file, np.float32, "w+", shape=(num_planes, *first_yxc.shape))
    for z in range(num_planes):
        image_yxc = image_of(z)
        if image_yxc.shape != first_yxc.shape:
            raise DataError(
                f"{image_yxc.shape[0]}×{image_yxc.shape[1]} pixels",
                expected=f"{first_yxc.shape[0]}×{first_yxc.shape[1]}, as plane 0: sections go through all planes",
                where=f"plane {z}",
            )
        volume_zyxc[z] = image_yxc
    return volume_zyxc
