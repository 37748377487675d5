"""Add a user's images and masks: look at them, check them against each other, copy them into data/."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML
from skimage.measure import label

from stackseg.atomic import atomic_folder
from stackseg.dataset.files.stack import open_stack
from stackseg.dataset.labels.table import LabelTable, raw_counts
from stackseg.dataset.specimens import (
    NOTE_FILE,
    SingleFiles,
    Specimen,
    SpecimenNote,
    list_images,
    open_files,
)
from stackseg.errors import DataError
from stackseg.intake.write_tiff import write_stack

RESERVED_NAMES = ("images", "masks", "groups.csv")
"""Names that mean something else in data/."""


@dataclass(frozen=True)
class Inspection:
    """What was found in a user's files; `raw` counts the pixels of every raw mask value or colour."""

    specimen: Specimen
    raw: dict[int | str, int]
    raw_of_planes: tuple[frozenset[int | str], ...]
    num_regions: int
    """Connected regions of one value other than 0, over all grey masks."""
    intensity_range: tuple[float, float]
    num_constant: int


def open_pair(
    images: Path,
    masks: Path,
    *,
    planes: Sequence[int] | None = None,
    axes: str | None = None,
    mask_axes: str | None = None,
) -> Specimen:
    """Open a user's images and masks: two files, or two folders of single files.

    Raises
    ------
    DataError
        They are unreadable or do not fit each other.
    """
    for path in (images, masks):
        if not path.exists():
            raise DataError("no such file or folder", where=str(path), remedy="check the path")
    if images.is_dir() != masks.is_dir():
        raise DataError(
            f"one of {images} and {masks} is a folder, the other a file",
            expected="two files, or two folders",
            remedy="give both as stacks or both as folders",
        )
    note = SpecimenNote(
        planes=None if planes is None else list(planes), axes=axes, mask_axes=mask_axes, source=_sources(images, masks)
    )
    if images.is_dir() and (planes is not None or axes is not None or mask_axes is not None):
        raise DataError(
            "--planes or --axes with folders of single files",
            expected="stacks",
            where=str(images),
            remedy="leave the option out: files are paired by name",
        )
    return open_files(_name_of(images), images, masks, note)


def inspect(specimen: Specimen, progress: Callable[[int, int], None] = lambda done, all_: None) -> Inspection:
    """Read every annotated plane once: raw mask values, intensity range, constant planes; NaN is refused."""
    counts: Counter[int | str] = Counter()
    codes_of_planes = []
    num_regions = 0
    low, high, num_constant = np.inf, -np.inf, 0
    for page, z in enumerate(specimen.labelled):
        image_yxc = specimen.plane(z)
        plane_low, plane_high = float(image_yxc.min()), float(image_yxc.max())
        low, high = min(low, plane_low), max(high, plane_high)
        num_constant += plane_low == plane_high
        mask_yxc = specimen.raw_mask(z)
        raw = raw_counts(mask_yxc, where=specimen.mask_where(z))
        counts.update(raw)
        codes_of_planes.append(frozenset(raw))
        if mask_yxc.shape[2] == 1:
            num_regions += int(label(mask_yxc[:, :, 0].astype(np.int64), connectivity=2).max())
        progress(page + 1, len(specimen.labelled))
    return Inspection(specimen, dict(counts), tuple(codes_of_planes), num_regions, (low, high), num_constant)


def check_values(specimen: Specimen, table: LabelTable) -> None:
    """Refuse a mask with a value that the table does not name, saying file, plane, value and count."""
    for z in specimen.labelled:
        specimen.labels(z, table)


def require_name(name: str) -> None:
    """Raise DataError unless a specimen may be called so: its name is that of a folder directly in data/."""
    is_plain = re.fullmatch(r"\w[\w .+-]*", name) is not None and name == name.strip()
    if not is_plain or name.lower() in RESERVED_NAMES:
        raise DataError(
            f"{name!r} cannot be the name of a specimen",
            expected=f"letters, digits, and _ . + - or spaces within, other than {', '.join(RESERVED_NAMES)}",
            where="--name",
            remedy="choose another name",
        )


def copy_specimen(specimen: Specimen, data: Path, name: str) -> Path:
    """Copy a specimen's files into data/<name>/, whole or not at all.

    TIFF files are copied byte for byte; PNG files become TIFF with the same values. Where there is something to note
    (planes, axes, where the files came from), specimen.yaml says it.
    """
    require_name(name)
    target = data / name
    if target.exists():
        raise DataError(
            "the specimen is there already", where=str(target), remedy="choose another --name, or --replace all data"
        )
    with atomic_folder(target) as temporary:
        if isinstance(specimen.images, SingleFiles):
            for z in specimen.labelled:
                stem = _stem(specimen.image_file(z).info.path)
                _copy(specimen.image_file(z).info.path, temporary / "images" / stem)
                _copy(specimen.mask_file(z).info.path, temporary / "masks" / stem)
        else:
            _copy(specimen.image_file(0).info.path, temporary / "images")
            _copy(specimen.mask_file(specimen.labelled[0]).info.path, temporary / "masks")
        with (temporary / NOTE_FILE).open("w", encoding="utf-8") as file:
            YAML(typ="safe").dump(specimen.note.model_dump(mode="json", exclude_none=True), file)
    return target


def _copy(source: Path, target: Path) -> None:
    """Copy an image file to `target` plus .tif."""
    target.parent.mkdir(exist_ok=True)
    written = target.with_name(f"{target.name}.tif")
    if source.suffix.lower() == ".png":
        with open_stack(source) as stack:
            planes = [stack.plane(z) for z in range(len(stack))]
            write_stack(written, planes, num_planes=len(planes))
    else:
        shutil.copyfile(source, written)


def _sources(images: Path, masks: Path) -> dict[str, str]:
    """Return name and SHA-256 of the added files, or of a folder's list of them."""
    return {kind: f"{path.name} sha256:{_sha256(path)}" for kind, path in (("images", images), ("masks", masks))}


def _sha256(path: Path) -> str:
    if path.is_dir():
        listed = "".join(f"{one.name} {_sha256(one)}\n" for one in sorted(list_images(path)))
        return hashlib.sha256(listed.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stem(path: Path) -> str:
    return path.name.removesuffix(path.suffix).removesuffix(".ome")


def _name_of(images: Path) -> str:
    """Return a specimen's name from its files: that of a folder above where the file is only called images."""
    stem = _stem(images) if images.is_file() else images.name
    folders = [one.name for one in images.resolve().parents]
    name = next(one for one in (stem, *folders, "specimen") if one.lower() not in (*RESERVED_NAMES, "image", "stack"))
    return "".join(one if one.isalnum() or one in "._-" else "_" for one in name).strip("._-") or "specimen"
