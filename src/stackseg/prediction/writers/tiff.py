"""TIFF: classic for Fiji, tiled OME-TIFF for all that knows it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from stackseg.atomic import atomic_file
from stackseg.dataset.files.stack import open_stack
from stackseg.intake.write_tiff import CLASSIC_TIFF_BYTES, cannot_write, colour_map, write_stack
from stackseg.prediction.outputs import Described, Kind, Layer

Plane = npt.NDArray[np.generic]
TILE = 512


def write_layer(path: Path, kind: Kind, layer: Layer, planes: Iterable[Plane], described: Described) -> None:
    """Write planes (Y, X), or (Y, X, C) of probabilities, as a TIFF, whole or not at all.

    From 4 GB of pixels on, a .tif holds a tiled OME-TIFF as well, for a classic TIFF ends there.

    Raises
    ------
    MachineError
        The disk is full, or the folder cannot be written to.
    """
    iterator = iter(planes)
    first = next(iterator)
    planes = chain([first], iterator)
    if kind == "ome-tiff" or is_large(first, len(described.planes)):
        _write_ome(path, layer, first, planes, described)
        return
    write_stack(
        path,
        planes,
        num_planes=len(described.planes),
        voxel_size_zyx_um=described.voxel_size_zyx_um,
        colours=_colours(layer, described),
        rgb=False,
        software=_software(described),
    )


def write_numbers(path: Path, kind: Kind, planes: Iterable[Plane], described: Described) -> None:
    """Write numbers of objects (Y, X) in 16 bits, or in 32 where a plane has more; otherwise as `write_layer`."""
    # few programs read 32 bits, and how many objects there are is known at the end only
    wide = path.with_name(f".{path.name}.wide.tif")
    most = 0

    def counted() -> Iterator[Plane]:
        nonlocal most
        for plane in planes:
            most = max(most, int(plane.max()))
            yield plane

    try:
        write_stack(wide, counted(), num_planes=len(described.planes))
        dtype = np.uint16 if most <= np.iinfo(np.uint16).max else np.uint32
        with open_stack(wide, axes="ZYX") as labels:
            narrow = (labels.plane(z)[:, :, 0].astype(dtype) for z in range(len(labels)))
            write_layer(path, kind, "mask", narrow, described)
    finally:
        wide.unlink(missing_ok=True)


def is_large(plane: Plane, num_planes: int) -> bool:
    """Return whether a stack of such planes is too large for a classic TIFF."""
    return plane.nbytes * num_planes > CLASSIC_TIFF_BYTES


def _write_ome(path: Path, layer: Layer, first: Plane, planes: Iterable[Plane], described: Described) -> None:
    height, width = first.shape[:2]
    num_channels = first.shape[2] if first.ndim == 3 else 1
    colours = _colours(layer, described)
    try:
        with (
            atomic_file(path) as part,
            tifffile.TiffWriter(part, ome=True, bigtiff=is_large(first, len(described.planes))) as writer,
        ):
            writer.write(
                _tiles(planes),
                shape=(len(described.planes), num_channels, height, width),
                dtype=first.dtype,
                tile=(TILE, TILE),
                photometric="palette" if colours else "minisblack",
                colormap=colour_map(colours) if colours else None,
                compression="deflate",
                software=_software(described),
                metadata=_ome_metadata(path, layer, num_channels, described),
            )
    except OSError as error:
        raise cannot_write(path, error) from error


def _tiles(planes: Iterable[Plane]) -> Iterator[Plane]:
    for plane in planes:
        for channel_yx in np.moveaxis(np.atleast_3d(plane), 2, 0):
            for y in range(0, plane.shape[0], TILE):
                for x in range(0, plane.shape[1], TILE):
                    yield channel_yx[y : y + TILE, x : x + TILE]


def _ome_metadata(path: Path, layer: Layer, num_channels: int, described: Described) -> dict[str, Any]:
    names = [one.name for one in described.classes]
    sizes = dict(zip("ZYX", described.voxel_size_zyx_um or (), strict=False))
    metadata: dict[str, Any] = {
        "axes": "ZCYX",
        "Name": path.name,
        "Creator": f"stackseg {described.provenance['version']}",
        "UUID": str(uuid.uuid4()),  # tifffile's own would hold the machine's address
        "Channel": {"Name": names if num_channels > 1 else [layer]},
        "MapAnnotation": {"Namespace": "stackseg", **described.provenance},
    }
    if layer == "mask" and not described.instances:
        metadata["MapAnnotation"] |= {f"class {value}": name for value, name in enumerate(names)}
    for axis, size in sizes.items():
        if size is not None:
            metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    return metadata


def _colours(layer: Layer, described: Described) -> list[str]:
    """Return the colours of the values; numbers of objects and shares have none."""
    return [] if layer != "mask" or described.instances else [one.display for one in described.classes]


def _software(described: Described) -> str:
    return f"stackseg {json.dumps(described.provenance)}"  # ASCII, as the tag wants it
