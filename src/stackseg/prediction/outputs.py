"""Which files a segmentation writes, and whether they may be written there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stackseg.dataset.files.axes import VoxelSize
from stackseg.dataset.records import ClassRecord
from stackseg.errors import DataError, ParamsError

Kind = Literal["tiff", "ome-tiff", "zarr", "png"]
Layer = Literal["mask", "probabilities", "uncertainty", "disagreement"]
SUFFIXES: Mapping[str, Kind] = {
    ".ome.tif": "ome-tiff",
    ".ome.tiff": "ome-tiff",
    ".ome.zarr": "zarr",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".zarr": "zarr",
}
PROVENANCE = "stackseg"
"""Attribute of a .zarr, and stem of a JSON file in a folder, by which a result is known for one."""


@dataclass(frozen=True)
class Outputs:
    """A file or folder for the mask, and those beside it."""

    kind: Kind
    mask: Path
    layers: tuple[Layer, ...]
    """All that may be written."""

    @property
    def resumable(self) -> bool:
        """Whether what is written of it can be gone on with."""
        return self.kind in ("zarr", "png")

    @property
    def part(self) -> Path:
        """The folder in which a .zarr or a folder grows."""
        return self.mask.with_name(f"{self.mask.name}.part")

    def absolute(self) -> Outputs:
        """Return the same with an absolute path, for processes elsewhere."""
        return replace(self, mask=self.mask.absolute())

    def path(self, layer: Layer) -> Path:
        """Return where a layer is written: OUT itself, or a name with the layer's before the suffix."""
        if layer == "mask":
            return self.mask
        suffix = self.mask.name[len(self.mask.name) - len(_suffix(self.mask.name)) :]
        return self.mask.with_name(f"{self.mask.name.removesuffix(suffix)}_{layer}{suffix}")


@dataclass(frozen=True)
class Share:
    """The i-th of n shares of the planes, counted from 1: what one of n calls segments."""

    number: int = 1
    of: int = 1

    def planes(self, planes: range) -> range:
        """Return those of the planes that the share has; they follow each other, and are none where n is large."""
        first, stop = (len(planes) * before // self.of for before in (self.number - 1, self.number))
        return planes[first:stop]


WHOLE = Share()


def parse_share(text: str | None) -> Share:
    """Return the share that I/N names, the whole for None.

    Raises
    ------
    ParamsError
        It is not I/N with 1 ≤ I ≤ N.
    """
    if text is None:
        return WHOLE
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip(), re.ASCII)
    share = Share(int(found[1]), int(found[2])) if found else Share(0)
    if not 1 <= share.number <= share.of:
        raise ParamsError(f"{text!r}", expected="I/N with 1 ≤ I ≤ N, e.g. 2/8", where="--part")
    return share


@dataclass(frozen=True)
class Described:
    """What the files say of themselves.

    Parameters
    ----------
    planes
        Numbers, in the whole stack, of the planes that are written.
    num_planes
        Of the whole stack.
    provenance
        Model, digest, version and options, as JSON holds them.
    """

    planes: range
    num_planes: int
    voxel_size_zyx_um: VoxelSize | None
    classes: tuple[ClassRecord, ...]
    instances: bool
    provenance: Mapping[str, Any]


def plan_outputs(out: str, *, probabilities: bool, uncertainty: bool) -> Outputs:
    """Return what is written to OUT, by its suffix.

    Raises
    ------
    DataError
        The suffix is unknown.
    """
    path = Path(out)
    kind = SUFFIXES.get(_suffix(path.name))
    if kind is None and path.suffix and not out.endswith("/"):
        raise DataError(
            f"a file named {path.name}",
            expected=".tif, .ome.tif, .zarr, or a folder of PNGs",
            where="OUT",
            remedy=f"for a folder of that name, `{out}/`",
        )
    beside: list[Layer] = ["probabilities"] if probabilities else []
    beside += ["uncertainty", "disagreement"] if uncertainty else []
    return Outputs(kind or "png", path, ("mask", *beside))


def require_free(outputs: Outputs, image: Path, *, overwrite: bool, resume: bool, shared: bool = False) -> None:
    """Refuse outputs before any work is done.

    Raises
    ------
    DataError
        One is there already, lies in the image or around it, or its folder is not there; `resume` does not go with the
        kind; what an earlier call left is there, and neither `resume` nor `overwrite` says what to do with it. What is
        `shared` by several processes has to be of a kind that can be gone on with, and replaces nothing.
    """
    if shared and not outputs.resumable:
        raise DataError(
            "a TIFF is not written by several processes", where=str(outputs.mask), remedy="write a .zarr or a folder"
        )
    if shared and overwrite:
        raise DataError(
            "several processes would replace what the others write",
            where="--overwrite",
            remedy="remove OUT yourself, or name another",
        )
    if resume and not outputs.resumable:
        raise DataError(
            "a TIFF cannot be gone on with", where=str(outputs.mask), remedy="write a .zarr or a folder with --resume"
        )
    source = image.resolve()
    for path in map(outputs.path, outputs.layers):
        target = path.resolve()
        if target == source:
            raise DataError("the mask would replace the image", where=str(path), remedy="name another file")
        if target.is_relative_to(source) or source.is_relative_to(target):
            raise DataError(
                "OUT and IN lie in one another", where=str(path), remedy="write beside the image, not into it"
            )
        if not target.parent.is_dir():
            raise DataError(f"no folder {path.parent}", where=str(path), remedy="make it, or check the path")
        if path.exists() and not overwrite:
            what = "folder" if path.is_dir() else "file"
            raise DataError(f"the {what} is there already", where=str(path), remedy="name another, or add --overwrite")
        if path.is_dir() and not (outputs.resumable and is_result(path)):
            raise DataError(
                "a folder that `predict` has not written",
                where=str(path),
                remedy="it is not replaced: name another, or remove it yourself",
            )
    if outputs.resumable and outputs.part.exists() and not (resume or overwrite):
        raise DataError(
            "an earlier call was broken off",
            where=str(outputs.part),
            remedy="--resume goes on with it, --overwrite begins anew",
        )


def is_result(folder: Path) -> bool:
    """Return whether a folder is empty, or is one that `predict` has written."""
    if (folder / f"{PROVENANCE}.json").is_file() or not any(folder.iterdir()):
        return True
    try:
        tree = json.loads((folder / "zarr.json").read_bytes())
        return PROVENANCE in tree["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _suffix(name: str) -> str:
    """Return the known suffix with which a name ends, in small letters, or nothing."""
    return next((one for one in SUFFIXES if name.lower().endswith(one) and len(name) > len(one)), "")
