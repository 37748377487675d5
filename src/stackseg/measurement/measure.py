"""Measure masks: how much there is of each class, which objects there are, whether pores lead through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import psutil
from scipy import ndimage

from stackseg.dataset.files.axes import VoxelSize
from stackseg.dataset.files.stack import Stack
from stackseg.dataset.labels.table import MAX_CLASSES
from stackseg.errors import DataError, MachineError
from stackseg.measurement.masks import Class, class_plane, object_plane, unnamed_classes
from stackseg.measurement.pores import PoreSpace, describe_pores
from stackseg.measurement.regions import Regions, regions_of_plane

Progress = Callable[[int, int], None]

_BYTES_PER_VOXEL = 6  # the class, whether it is the one that is labelled, and the number of the region: 1 + 1 + 4


@dataclass(frozen=True)
class Scale:
    """What a voxel's sides are, and in which unit."""

    sides_zyx: tuple[float, float, float]
    """1 in pixels; along z also where planes are measured each by itself."""
    length: Literal["um", "px"]
    size: Literal["um3", "voxels", "um2", "px"]
    """Unit of volumes or areas."""

    @property
    def voxel(self) -> float:
        """Volume of a voxel, or area of a pixel."""
        return float(np.prod(self.sides_zyx))


def scale_of(voxel_size_zyx_um: VoxelSize | None, *, volume: bool) -> Scale:
    """Return the scale of volumes or of planes: in micrometres where the file knows all sides that it takes."""
    z, y, x = voxel_size_zyx_um or (None, None, None)
    if y is None or x is None or (volume and z is None):
        return Scale((1, 1, 1), "px", "voxels" if volume else "px")
    return Scale((z, y, x), "um", "um3") if volume and z is not None else Scale((1, y, x), "um", "um2")


@dataclass(frozen=True)
class ObjectGroup:
    """Objects of one class, of one plane or of the volume."""

    class_index: int
    plane: int | None
    regions: Regions


@dataclass(frozen=True)
class Measures:
    """What was measured."""

    classes: Sequence[Class]
    pixels_zc: npt.NDArray[np.int64]
    """Pixels of each class in each plane (Z, C)."""
    groups: Sequence[ObjectGroup]
    scale: Scale
    """Of the objects."""
    plane_scale: Scale
    spacing_z_um: float | None
    numbered: bool
    """Whether the mask numbers the objects itself."""
    pores: PoreSpace | None = None

    def sizes(self, class_index: int) -> npt.NDArray[np.float64]:
        """Return the sizes of all objects of a class."""
        sizes = [one.regions.sizes_n for one in self.groups if one.class_index == class_index]
        return np.concatenate([np.zeros(0), *sizes]) * self.scale.voxel


def bytes_for_volume(masks: Stack) -> int:
    """Return how much memory the labelling of a volume of classes takes, about."""
    return masks.info.num_planes * masks.info.shape_yx[0] * masks.info.shape_yx[1] * _BYTES_PER_VOXEL


def measure_classes(
    masks: Stack, classes: Sequence[Class] | None, *, volume: bool, pore: int | None, progress: Progress
) -> Measures:
    """Measure a mask of class indices; pixels or voxels of a class that share an edge or face are one object.

    Parameters
    ----------
    classes
        None where they have no names: then there are as many as the highest index says.
    volume
        Whether objects go on from plane to plane. The volume is then held in memory.
    pore
        Index of the class whose pores are described; for volumes only.
    progress
        Told of the planes that are done, and of all.

    Raises
    ------
    DataError
        A value is the index of no class.
    MachineError
        There is not enough memory for the volume.
    """
    info = masks.info
    if volume:
        _require_memory(masks)
    volume_zyx = np.empty((info.num_planes if volume else 0, *info.shape_yx), np.uint8)
    pixels_zc = np.zeros((info.num_planes, MAX_CLASSES), np.int64)
    groups: list[ObjectGroup] = []
    for z in range(info.num_planes):
        plane_yx = class_plane(masks, z, len(classes) if classes else None)
        pixels_zc[z] = np.bincount(plane_yx.ravel(), minlength=MAX_CLASSES)
        if volume:
            volume_zyx[z] = plane_yx
        else:
            for index in np.flatnonzero(pixels_zc[z]).tolist():
                numbers_yx, _ = ndimage.label(plane_yx == index)
                groups.append(ObjectGroup(index, z, regions_of_plane(numbers_yx, z)))
        progress(z + 1, info.num_planes)
    present = np.flatnonzero(pixels_zc.sum(axis=0)).tolist()
    known = list(classes) if classes else unnamed_classes(present[-1] + 1)
    pores = None
    for done, index in enumerate(present if volume else (), start=1):
        numbers_zyx, _ = ndimage.label(volume_zyx == index)
        regions = Regions.merged([regions_of_plane(one, z) for z, one in enumerate(numbers_zyx)])
        groups.append(ObjectGroup(index, None, regions))
        if index == pore:
            pores = describe_pores(index, numbers_zyx, regions.sizes_n)
        progress(done, len(present))
    if pore is not None and pores is None:
        pores = PoreSpace(pore, 0.0, 0, 0.0, (0.0, 0.0, 0.0))
    return _measures(masks, known, pixels_zc[:, : len(known)], groups, volume=volume, numbered=False, pores=pores)


def measure_objects(masks: Stack, classes: Sequence[Class], *, volume: bool, progress: Progress) -> Measures:
    """Measure a mask whose values number objects, of which `classes` name the background and the object.

    Planes are read one at a time. For volumes a number means the same object in all planes.
    """
    num_planes = masks.info.num_planes
    pixels_zc = np.zeros((num_planes, 2), np.int64)
    planes: list[Regions] = []
    for z in range(num_planes):
        plane_yx = object_plane(masks, z)
        num_inside = np.count_nonzero(plane_yx)
        pixels_zc[z] = plane_yx.size - num_inside, num_inside
        planes.append(regions_of_plane(plane_yx, z))
        progress(z + 1, num_planes)
    groups = (
        [ObjectGroup(1, None, Regions.merged(planes))]
        if volume
        else [ObjectGroup(1, z, regions) for z, regions in enumerate(planes)]
    )
    return _measures(masks, classes, pixels_zc, groups, volume=volume, numbered=True, pores=None)


def _measures(
    masks: Stack,
    classes: Sequence[Class],
    pixels_zc: npt.NDArray[np.int64],
    groups: Sequence[ObjectGroup],
    *,
    volume: bool,
    numbered: bool,
    pores: PoreSpace | None,
) -> Measures:
    voxel_size = masks.info.voxel_size_zyx_um
    return Measures(
        classes,
        pixels_zc,
        groups,
        scale=scale_of(voxel_size, volume=volume),
        plane_scale=scale_of(voxel_size, volume=False),
        spacing_z_um=voxel_size[0] if voxel_size else None,
        numbered=numbered,
        pores=pores,
    )


def require_volume(masks: Stack) -> None:
    """Raise DataError for a single plane, through which nothing leads."""
    if masks.info.num_planes == 1:
        raise DataError(
            "one plane", expected="several, to measure in 3D", where=str(masks.info.path), remedy="leave out --3d"
        )


def _require_memory(masks: Stack) -> None:
    needed, free = bytes_for_volume(masks), psutil.virtual_memory().available
    if needed > free:
        raise MachineError(
            f"labelling in 3D takes about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free",
            where=str(masks.info.path),
            remedy="measure each plane by itself with --2d, or parts that `stackseg extract --slices` writes",
        )
