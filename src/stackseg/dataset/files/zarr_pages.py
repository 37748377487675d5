"""An image in OME-Zarr 0.4 or 0.5 as planes that are decoded one at a time, or in parts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import zarr
from natsort import natsorted

from stackseg.dataset.files.axes import VoxelSize, in_micrometres, name_axes
from stackseg.dataset.files.encoding import Encoding
from stackseg.dataset.files.tiff_validation import COPY_AGAIN
from stackseg.errors import DataError, one_line

_NAMED = 4


class ZarrPages:
    """One level of an OME-Zarr image; a `PageSource` of `pages.py`, whose pages are the planes of one channel.

    `axes` are those that the user gives, to override the metadata's; channels and planes come first in `self.axes`
    whatever the order of the file.
    """

    def __init__(self, folder: Path, *, level: int = 0, axes: str | None = None) -> None:
        self._where = str(folder)
        self.notes: list[str] = []
        image = self._image(folder)
        datasets, axes_named = self._list_of(image, "datasets"), self._list_of(image, "axes")
        if not 0 <= level < len(datasets):
            raise DataError(
                f"no level {level}",
                expected=f"0 to {len(datasets) - 1}: it has {len(datasets)} level{'s' * (len(datasets) > 1)}",
                where=self._where,
                remedy="name another with `--level`; 0 is the full size",
            )
        self._array = self._level(folder, datasets[level].get("path"))
        named = [(str(one.get("name", "")), str(one.get("unit", ""))) for one in axes_named]
        if len(named) != self._array.ndim:
            self._damaged(f"its metadata name {len(named)} axes, and level {level} has {self._array.ndim}")
        self._kept = [
            place
            for place, (name, _) in enumerate(named)
            if self._array.shape[place] != 1 or name.upper() in ("Y", "X")
        ]
        letters = self._letters([named[place][0] for place in self._kept], axes)
        on_page = [letter in "YX" for letter in letters]
        # the places of self.axes among the dimensions of the file
        self._order = [self._kept[n] for n in np.argsort(on_page, kind="stable")]
        self.axes = "".join(letters[self._kept.index(place)] for place in self._order)
        self.shape = tuple(self._array.shape[place] for place in self._order)
        self.num_page_axes = 2
        self.dtype = self._array.dtype.newbyteorder("=")
        if self.dtype.kind not in "biuf" or 0 in self.shape:
            raise DataError(
                f"an array of {self.dtype} and shape {self._array.shape}",
                expected="pixels that are integers, real numbers or 1-bit",
                where=self._where,
                remedy="write the image again in one of these types",
            )
        self.alpha = ""
        self.encoding = Encoding("channels" if "C" in self.axes else "grey", 8 * self.dtype.itemsize)
        self.guessed_channels = False
        self.voxel_size_zyx_um = self._voxel_size(image, datasets[level], named)
        self._check_chunks(folder / str(datasets[level]["path"]))

    def page(self, number: int, region: tuple[slice, ...] | None = None) -> npt.NDArray[np.generic]:
        """Decode one plane of one channel, or the chunks of it that a part touches."""
        grid = np.unravel_index(number, self.shape[: -self.num_page_axes])
        wanted: list[int | slice] = [0] * self._array.ndim
        parts: list[int | slice] = [*map(int, grid), *(region or (slice(None), slice(None)))]
        for place, part in zip(self._order, parts, strict=True):
            wanted[place] = part
        return np.asarray(self._array[tuple(wanted)]).astype(self.dtype, copy=False)

    def close(self) -> None:
        """Do nothing: each chunk is opened while it is read."""

    def _image(self, folder: Path) -> dict[str, Any]:
        """Return the metadata of the image of a group, or refuse what is no image and name the one to take."""
        try:
            group = zarr.open_group(folder, mode="r", use_consolidated=False)
            attributes: Any = group.attrs.asdict()
        except zarr.errors.ContainsArrayError:
            raise DataError(
                "a Zarr array, which does not say what its axes are",
                expected="an OME-Zarr image",
                where=self._where,
                remedy=f"name the image's folder, {folder.absolute().parent} perhaps, and a level with `--level`",
            ) from None
        except Exception as error:  # whatever broken JSON makes zarr raise
            self._damaged(f"a Zarr whose metadata cannot be read ({one_line(error)})", error)
        attributes = attributes.get("ome", attributes)
        if not isinstance(attributes, dict):
            self._damaged(f"its `ome` attribute is {attributes!r}")
        if attributes.get("multiscales"):
            images = self._list_of(attributes, "multiscales")
            if len(images) > 1:
                self.notes.append(f"{len(images)} images in one Zarr group, the first was read")
            version = images[0].get("version", attributes.get("version", "0.4"))
            if version not in ("0.4", "0.5"):
                raise DataError(
                    f"OME-Zarr of version {version}",
                    expected="version 0.4 or 0.5",
                    where=self._where,
                    remedy="write it again in one of these, or as TIFF",
                )
            return images[0]
        for key, kind in (
            ("plate", "a plate of wells"),
            ("well", "a well of a plate"),
            ("bioformats2raw.layout", "a Zarr of several images, as bioformats2raw writes it"),
            ("labels", "the labels of an image"),
        ):
            if key in attributes:
                raise DataError(kind, expected="one OME-Zarr image", where=self._where, remedy=_images_below(folder))
        raise DataError(
            "a Zarr group without multiscales",
            expected="an OME-Zarr image of version 0.4 or 0.5",
            where=self._where,
            remedy=_images_below(folder),
        )

    def _list_of(self, metadata: dict[str, Any], key: str) -> list[dict[str, Any]]:
        found = metadata.get(key)
        if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
            self._damaged(f"its {key} are {one_line(ValueError(repr(found)))}, not a list of objects")
        return found

    def _damaged(self, found: str, error: Exception | None = None) -> NoReturn:
        raise DataError(found, where=self._where, remedy=COPY_AGAIN) from error

    def _level(self, folder: Path, path: object) -> zarr.Array[Any]:
        try:
            return zarr.open_array(folder, path=str(path), mode="r")
        except Exception as error:  # not there, broken, or of a codec that is not installed
            self._damaged(f"its array {path} cannot be opened ({one_line(error)})", error)

    def _letters(self, names: list[str], option: str | None) -> str:
        shape = tuple(self._array.shape[place] for place in self._kept)
        sizes = ", ".join(f"{name}={size}" for name, size in zip(names, shape, strict=True))
        if option is None and (unknown := [one for one in names if one.upper() not in ("T", "C", "Z", "Y", "X")]):
            raise DataError(
                f"its axes are {sizes}: what is {', '.join(unknown)}?",
                expected="the names c, z, y and x",
                where=self._where,
                remedy="say with `--axes`, such as `--axes ZYX`, what the axes longer than 1 are",
            )
        if option is None and "T" in (one.upper() for one in names):
            raise DataError(
                f"its axes are {sizes}: a series in time",
                expected="one time point",
                where=self._where,
                remedy="write the time point that you mean as an image of its own, or name t as planes, such as "
                "`--axes ZYX`",
            )
        letters = "".join(one.upper() if one.upper() in ("T", "C", "Z", "Y", "X") else "Q" for one in names)
        return name_axes(letters, shape, where=self._where, option=option)

    def _voxel_size(
        self, image: dict[str, Any], dataset: dict[str, Any], named: list[tuple[str, str]]
    ) -> VoxelSize | None:
        """Return micrometres, the scale of the level times that of the image; None where no unit is said."""
        size = dict.fromkeys("ZYX", 1.0)
        for one in (dataset, image):
            key = "coordinateTransformations"
            for change in self._list_of(one, key) if one.get(key) else []:
                if change.get("type") != "scale" or "scale" not in change:
                    continue
                scale = change["scale"]
                numbers = isinstance(scale, list) and all(isinstance(factor, int | float) for factor in scale)
                if not numbers or len(scale) != len(named):
                    self._damaged(f"its scale is {scale} for {len(named)} axes")
                for (name, _), factor in zip(named, scale, strict=True):
                    if name.upper() in size:
                        size[name.upper()] *= factor
        units = {name.upper(): unit for name, unit in named}
        z, y, x = (in_micrometres(size[letter], units.get(letter, "")) for letter in "ZYX")
        return None if z is y is x is None else (z, y, x)

    def _check_chunks(self, folder: Path) -> None:
        """Refuse empty files, which zarr reads as absent chunks, and say how many chunks are absent."""
        for file in folder.rglob("*"):
            if not file.name.startswith(".") and file.is_file() and not file.stat().st_size:
                self._damaged(f"{file.relative_to(self._where)} is an empty file (0 bytes)")
        array = self._array
        stored = array.shards or array.chunks
        num_stored = math.prod(math.ceil(size / one) for size, one in zip(array.shape, stored, strict=True))
        per_file = math.prod(one // inner for one, inner in zip(stored, array.chunks, strict=True))
        if num_absent := num_stored - array.nchunks_initialized // per_file:
            self.notes.append(f"{num_absent} of {num_stored} chunks are not there, read as {array.fill_value or 0:g}")


def _images_below(folder: Path) -> str:
    """Say which images lie in a group that is none itself, as a remedy."""
    for depth in ("*", "*/*", "*/*/*"):  # a well of a plate is two folders deep, and its images three
        metadata = [one for name in (".zattrs", "zarr.json") for one in folder.glob(f"{depth}/{name}")]
        found = natsorted(str(one.parent) for one in metadata if b'"multiscales"' in one.read_bytes())
        if found:
            listed = ", ".join(f"`{one}`" for one in found[:_NAMED])
            return f"name the image that you mean: {listed}{', …' if len(found) > _NAMED else ''}"
    return "write it with its axes as OME-Zarr, or as TIFF"
