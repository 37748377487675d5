"""A folder of PNGs: a file for each plane."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor

from stackseg.atomic import write_text
from stackseg.errors import DataError
from stackseg.prediction.outputs import PROVENANCE, Described, Layer


class PngLayer:
    """A palette PNG of 8 bits for each plane of classes, a grey one otherwise: 16 bits for numbers of objects.

    Files are named by the number of the plane in the whole stack; of probabilities there is one for each class.
    """

    def __init__(self, folder: Path, layer: Layer, described: Described) -> None:
        self._folder = folder
        self._described = described
        self._coloured = layer == "mask" and not described.instances
        self._digits = len(str(described.num_planes - 1))
        folder.mkdir(exist_ok=True)
        if not (folder / f"{PROVENANCE}.json").exists():
            text = dict(described.provenance) | {
                "voxel_size_zyx_um": described.voxel_size_zyx_um,
                "classes": [{"name": one.name, "display": one.display} for one in described.classes],
            }
            write_text(folder / f"{PROVENANCE}.json", json.dumps(text, indent=2) + "\n")

    def add(self, place: int, plane: npt.NDArray[np.generic]) -> None:
        """Write the plane (Y, X), or (Y, X, C), at a place of those that are written.

        Raises
        ------
        DataError
            It holds more objects than a PNG can number.
        """
        name = f"{self._described.planes[place]:0{self._digits}d}"
        if plane.ndim == 3:
            for index in range(plane.shape[2]):
                self._write(f"{name}_class{index}.png", plane[:, :, index])
            return
        self._write(f"{name}.png", plane)

    def _write(self, name: str, plane_yx: npt.NDArray[np.generic]) -> None:
        if plane_yx.dtype == np.uint32:
            if plane_yx.max() > np.iinfo(np.uint16).max:
                raise DataError(
                    f"{plane_yx.max()} objects in one plane",
                    expected="at most 65535, which a PNG can number",
                    where=name,
                    remedy="write a .zarr or a .tif",
                )
            plane_yx = plane_yx.astype(np.uint16)
        image = Image.fromarray(np.ascontiguousarray(plane_yx))
        if self._coloured:
            image.putpalette([part for one in self._described.classes for part in ImageColor.getrgb(one.display)])
        data = io.BytesIO()
        # Pillow hides what a full disk says where it writes to the file itself; 8 bits, for not all readers know 2
        image.save(data, "PNG", **({"bits": 8} if self._coloured else {}))
        (self._folder / name).write_bytes(data.getvalue())
