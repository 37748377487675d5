"""OME-Zarr 0.5: a shard for each plane, and a pyramid in y and x that grows with it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from ome_zarr.format import FormatV05
from ome_zarr.writer import add_metadata, write_multiscales_metadata

from stackseg.atomic import put_once
from stackseg.prediction.outputs import PROVENANCE, Described, Layer

CHUNK = 512
"""Rows and columns of a chunk, and the size below which a pyramid ends."""


class ZarrLayer:
    """Arrays (Z, Y, X), or (C, Z, Y, X) of probabilities, each half as large as the one before.

    Every second pixel of every second row is the next level: labels are never mixed.

    Parameters
    ----------
    folder
        The group, which is made if it is not there.
    first
        A plane (Y, X) or (Y, X, C), for shape and type.
    """

    def __init__(self, folder: Path, layer: Layer, first: npt.NDArray[np.generic], described: Described) -> None:
        num_levels = 1
        while max(first.shape[:2]) > CHUNK * 2 ** (num_levels - 1):
            num_levels += 1
        if not folder.exists():
            # several calls may fill one group: it is there as a whole or not at all
            with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as made:
                group = zarr.create_group(f"{made}/group", zarr_format=3)
                for level in range(num_levels):
                    _create(group, level, first, len(described.planes))
                _describe(group, layer, first.ndim == 3, num_levels, described)
                put_once(Path(f"{made}/group"), folder)
        group = zarr.open_group(folder, mode="r+", zarr_format=3)
        self._levels: Sequence[Any] = [group[f"s{level}"] for level in range(num_levels)]

    def add(self, place: int, plane: npt.NDArray[np.generic]) -> None:
        """Write the plane at a place in all levels."""
        for level, array in enumerate(self._levels):
            step = 2**level
            smaller = plane[::step, ::step]
            array[..., place, :, :] = np.moveaxis(smaller, 2, 0) if smaller.ndim == 3 else smaller


def _create(group: zarr.Group, level: int, first: npt.NDArray[np.generic], num_planes: int) -> None:
    shape_yx = tuple(-(-size // 2**level) for size in first.shape[:2])
    channels = first.shape[2:]
    chunk_yx = tuple(min(CHUNK, size) for size in shape_yx)
    shard_yx = tuple(-(-size // chunk) * chunk for size, chunk in zip(shape_yx, chunk_yx, strict=True))
    group.create_array(
        f"s{level}",
        shape=(*channels, num_planes, *shape_yx),
        dtype=first.dtype,
        chunks=(*(1 for _ in channels), 1, *chunk_yx),
        shards=(*channels, 1, *shard_yx),
        dimension_names=[*("c" for _ in channels), "z", "y", "x"],
    )


def _describe(group: zarr.Group, layer: Layer, by_class: bool, num_levels: int, described: Described) -> None:
    voxel_zyx = described.voxel_size_zyx_um or (None, None, None)
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}] if by_class else []
    for name, size in zip("zyx", voxel_zyx, strict=True):
        axes.append({"name": name, "type": "space"} | ({} if size is None else {"unit": "micrometer"}))
    z, y, x = (1.0 if size is None else size for size in voxel_zyx)
    datasets = [
        {
            "path": f"s{level}",
            "coordinateTransformations": [
                {"type": "scale", "scale": [*([1.0] if by_class else []), z, y * 2**level, x * 2**level]}
            ],
        }
        for level in range(num_levels)
    ]
    version = FormatV05()
    write_multiscales_metadata(group, datasets, fmt=version, axes=axes, name=layer)
    if layer == "mask":
        label: dict[str, Any] = {"version": version.version}
        if not described.instances:
            # a number of an object has no colour of its own
            label["colors"] = [
                {"label-value": value, "rgba": [*_rgb(one.display), 255]} for value, one in enumerate(described.classes)
            ]
            label["properties"] = [
                {"label-value": value, "class": one.name} for value, one in enumerate(described.classes)
            ]
        add_metadata(group, {"image-label": label}, fmt=version)
    elif by_class:
        channels = [
            {
                "label": one.name,
                "color": one.display.removeprefix("#").upper(),
                "active": True,
                "window": {"min": 0, "max": 255, "start": 0, "end": 255},
            }
            for one in described.classes
        ]
        add_metadata(group, {"omero": {"channels": channels}}, fmt=version)
    group.attrs[PROVENANCE] = dict(described.provenance)


def _rgb(colour: str) -> list[int]:
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
