"""Digests of data, and whether planes are still those that the catalogue describes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stackseg.dataset.records import Catalog, PlaneRecord
from stackseg.dataset.specimens import Specimen, find_specimens
from stackseg.dataset.splits import Part, PlaneRef
from stackseg.errors import DataError


def data_digest(folder: Path) -> str:
    """Return the md5 that DVC writes into data.dvc for this folder, computed from the bytes that are there.

    DVC's directory object is the JSON list of relative paths and file md5s, sorted by path
    (dvc-data, hashfile/tree.py); its name is that list's md5 with ".dir" behind it.
    """
    files = sorted(one for one in folder.rglob("*") if one.is_file())
    listed = [{"md5": file_md5(one), "relpath": one.relative_to(folder).as_posix()} for one in files]
    listed.sort(key=lambda one: one["relpath"])
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def file_md5(path: Path) -> str:
    """Return the md5 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def pixel_digest(array: npt.NDArray[np.generic]) -> str:
    """Return the SHA-256 over type, shape and little-endian pixels of an array."""
    head = f"{array.dtype.name} {array.shape} ".encode()
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return hashlib.sha256(head + little.tobytes()).hexdigest()


def require_same_planes(catalog: Catalog, data: Path, *parts: Part) -> None:
    """Refuse data of which an annotated plane of some parts has changed; the planes are read, others are not.

    Raises
    ------
    DataError
        An image or a mask has changed since the catalogue was made, or is missing.
    """
    records = dict(catalog.planes(*parts))
    for specimen, refs in by_specimen(list(records), data):
        table = catalog.table_of(specimen.name)
        for ref in refs:
            if ref.z not in specimen.labelled:
                raise DataError(
                    "the plane is no longer there",
                    where=str(ref),
                    remedy="`dvc repro`",
                )
            truth_yx = specimen.truth(ref.z, table)
            require_same_plane(ref, specimen.plane(ref.z), truth_yx, records[ref])


def require_same_plane(
    ref: PlaneRef, image_yxc: npt.NDArray[np.generic], truth_yx: npt.NDArray[np.integer], record: PlaneRecord
) -> None:
    """Refuse the image (Y, X, C) or the truth (Y, X) of a plane if they are not those of its record.

    Raises
    ------
    DataError
        One has changed.
    """
    pairs = (("image", image_yxc, record.image_sha256), ("mask", truth_yx, record.mask_sha256))
    changed = [name for name, pixels, digest in pairs if pixel_digest(pixels) != digest]
    if changed:
        raise DataError(
            f"the {changed[0]} has changed since the catalogue was made", where=str(ref), remedy="`dvc repro`"
        )


def by_specimen(chosen: Sequence[PlaneRef], data: Path) -> list[tuple[Specimen, list[PlaneRef]]]:
    """Return the specimens of some planes, opened, each with its planes.

    Raises
    ------
    DataError
        A specimen is missing.
    """
    opened = {one.name: one for one in find_specimens(data)}
    names = dict.fromkeys(ref.specimen for ref in chosen)
    missing = [name for name in names if name not in opened]
    if missing:
        raise DataError(
            f"no specimen {missing[0]}", where=str(data), remedy="`dvc repro catalog` brings the catalogue up to date"
        )
    return [(opened[name], [ref for ref in chosen if ref.specimen == name]) for name in names]
