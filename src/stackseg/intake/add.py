"""Add a user's images and masks: look at them, check them against each other, copy them into data/."""

from __future__ import annotations

import hashlib
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML
from skimage.measure import label

from stackseg.atomic import atomic_folder
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

RESERVED_NAMES = ("images", "masks", "groups")
"""Names that mean something else in data/, whatever follows behind a dot."""
_DEVICES = r"con|prn|aux|nul|(com|lpt)\d"  # what Windows takes for no file
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Inspection:
    """What was found in a user's files; `raw` counts the pixels of every raw mask value or colour."""

    specimen: Specimen
    raw: dict[int | str, int]
    raw_of_planes: tuple[frozenset[int | str], ...]
    num_regions: int
    """Connected regions of one value other than 0, over all grey masks."""
    first_seen: dict[int | str, str]
    """File and plane where each raw value was met first."""
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
        if not (path.is_file() or path.is_dir()):
            raise DataError("a pipe or device", expected="a file or folder", where=str(path))
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
    first_seen: dict[int | str, str] = {}
    low, high, num_constant = np.inf, -np.inf, 0
    for done, z in enumerate(specimen.labelled):
        image_yxc = specimen.plane(z)
        plane_low, plane_high = float(image_yxc.min()), float(image_yxc.max())
        low, high = min(low, plane_low), max(high, plane_high)
        num_constant += plane_low == plane_high
        where = specimen.mask_where(z)
        mask_yxc = specimen.raw_mask(z)
        found = raw_counts(mask_yxc, where=where)
        counts.update(found)
        codes_of_planes.append(frozenset(found))
        first_seen = dict.fromkeys(found, where) | first_seen
        if mask_yxc.shape[2] == 1:
            num_regions += int(label(mask_yxc[:, :, 0].astype(np.int64), connectivity=2).max())
        progress(done + 1, len(specimen.labelled))
    return Inspection(
        specimen=specimen,
        raw=dict(counts),
        raw_of_planes=tuple(codes_of_planes),
        num_regions=num_regions,
        first_seen=first_seen,
        intensity_range=(low, high),
        num_constant=num_constant,
    )


def check_values(specimen: Specimen, table: LabelTable) -> None:
    """Refuse a mask with a value that the table does not name, saying file, plane, value and count."""
    for z in specimen.labelled:
        specimen.labels(z, table)


def require_name(name: str) -> None:
    """Raise DataError unless a specimen may be called so: its name is that of a folder directly in data/."""
    is_plain = re.fullmatch(r"\w[\w .+-]*", name) is not None and name == name.rstrip(" .")
    before_dot = name.lower().partition(".")[0]
    if not is_plain or len(name) > _LONGEST_NAME or before_dot in RESERVED_NAMES or re.fullmatch(_DEVICES, before_dot):
        raise DataError(
            f"{name!r} cannot be the name of a specimen",
            expected=f"up to {_LONGEST_NAME} letters, digits, and _ . + - or spaces within, other than "
            f"{', '.join(RESERVED_NAMES)}, and the names of Windows' devices",
            where="--name",
            remedy="choose another name",
        )


def require_free(data: Path, name: str) -> None:
    """Raise DataError where data/ holds a specimen of that name, or of one that other systems take for the same."""
    for there in data.iterdir() if data.is_dir() else ():
        if _folded(there.name) == _folded(name):
            raise DataError(
                "the specimen is there already"
                if there.name == name
                else f"differs from {name} only in case or in how accents are written, which macOS and Windows ignore",
                where=str(there),
                remedy="choose another --name, or --replace all data",
            )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def copy_specimen(specimen: Specimen, data: Path, name: str) -> Path:
    """Copy a specimen's files into data/<name>/, whole or not at all.

    Files are copied byte for byte. Where there is something to note
    (planes, axes, where the files came from), specimen.yaml says it.
    """
    require_name(name)
    require_free(data, name)
    target = data / name
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
    """Copy an image file byte for byte to `target` plus .tif or .png."""
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, target.with_name(f"{target.name}{'.png' if source.suffix.lower() == '.png' else '.tif'}"))


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
    stem = _stem(images) if images.is_file() else (images.name or images.resolve().name)
    folders = [one.name for one in images.resolve().parents]
    no_names = (*RESERVED_NAMES, "image", "mask", "stack", "")
    name = next(one for one in (stem, *folders, "specimen") if one.lower() not in no_names)
    name = unicodedata.normalize("NFC", name)[:_LONGEST_NAME]
    return "".join(one if one.isalnum() or one in "._-" else "_" for one in name).strip("._-") or "specimen"
