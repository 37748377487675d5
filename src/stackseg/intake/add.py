"""Add a user's images and masks: look at them, check them against each other, copy them into data/."""

from __future__ import annotations

import filecmp
import hashlib
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from ruamel.yaml import YAML
from skimage.measure import label

from stackseg.atomic import atomic_folder
from stackseg.dataset.files.stack import open_stack
from stackseg.dataset.labels.codes import pixel_codes
from stackseg.dataset.labels.table import LabelTable, raw_counts
from stackseg.dataset.specimens import (
    NOTE_FILE,
    SingleFiles,
    Specimen,
    SpecimenNote,
    check_shapes,
    list_images,
    open_files,
    open_specimen,
)
from stackseg.errors import DataError
from stackseg.intake.write_tiff import write_stack

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
    name: str | None = None,
) -> Specimen:
    """Open a user's images and masks: two files, two folders of single files, or a stack and a folder of some masks.

    With `planes`, the masks of a stack may lie in a folder, a file each, called as `mask_file_name` says; `name` is the
    specimen's, by default that of its file.

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
    if images.is_file() and masks.is_dir() and planes is not None and mask_axes is None:
        return _open_masks_of_planes(images, masks, sorted(set(planes)), axes, name or name_of(images))
    if images.is_dir() != masks.is_dir():
        raise DataError(
            f"one of {images} and {masks} is a folder, the other a file",
            expected="two files, or two folders",
            remedy="give both as stacks or both as folders; a stack with masks that `stackseg suggest` wrote wants "
            "--planes",
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
    return open_files(name_of(images), images, masks, note)


def mask_file_name(name: str, z: int) -> str:
    """Return what the mask of plane z of a stack is called in a folder of masks."""
    return f"{name}_z{z:04d}_mask.tif"


def _open_masks_of_planes(images: Path, folder: Path, planes: Sequence[int], axes: str | None, name: str) -> Specimen:
    """Open a stack with the masks of some of its planes, which are single files of a folder."""
    stack = open_stack(images, axes=axes)
    if planes[-1] >= len(stack):
        raise DataError(
            f"plane {planes[-1]}",
            expected=f"numbers from 0 to {len(stack) - 1}",
            where="--planes",
            remedy=f"count the planes of {images} from 0",
        )
    files = [folder / mask_file_name(name, z) for z in planes]
    for z, file in zip(planes, files, strict=True):
        if not file.is_file():
            raise DataError(
                "no such file", where=str(file), remedy=f"leave {z} out of --planes, or name the stack by --name"
            )
    note = SpecimenNote(planes=list(planes), axes=axes, source=_sources(images, folder, files))
    specimen = Specimen(name, stack, SingleFiles(files), tuple(planes), note)
    check_shapes(specimen)
    return specimen


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


def find_same_stack(data: Path, name: str, specimen: Specimen, table: LabelTable | None) -> Specimen | None:
    """Return the specimen of that name if `specimen` brings masks of further planes of the very same stack.

    A plane on which nothing is drawn, by `table`, counts as one without a mask.

    Raises
    ------
    DataError
        A plane has a mask there already, or the two are read with other axes.
    """
    if specimen.note.planes is None or not (data / name).is_dir():
        return None
    present = open_specimen(data / name, name)
    there, given = (one.image_file(0).info.path for one in (present, specimen))
    if not present.is_stack or not filecmp.cmp(there, given, shallow=False):
        return None
    if (len(present), present.shape_yx(0)) != (len(specimen), specimen.shape_yx(0)):
        raise DataError(
            f"{len(specimen)} planes of {specimen.shape_yx(0)}",
            expected=f"{len(present)} of {present.shape_yx(0)}, as {data / name} has",
            where=str(given),
            remedy=f"give the same --axes as before: {present.note.axes}",
        )
    annotated = present.labelled if table is None else present.annotated(table)
    if twice := sorted({*annotated} & {*specimen.labelled}):
        raise DataError(
            f"plane {', '.join(map(str, twice))} has a mask there already",
            where=str(data / name),
            remedy=f"leave it out of --planes; to correct the mask that is there, edit "
            f"{present.mask_file(twice[0]).info.path}",
        )
    return present


def add_planes(present: Specimen, further: Specimen, data: Path) -> Path:
    """Add the masks of further planes to a specimen of data/: its folder is written anew, whole or not at all."""
    owners = {z: one for one in (present, further) for z in one.labelled}
    planes = ",".join(map(str, further.labelled))
    note = present.note.model_copy(
        update={
            "planes": sorted(owners),
            "mask_axes": None,
            "source": {**present.note.source, f"masks of {planes}": further.note.source["masks"]},
        }
    )
    target = data / present.name
    with atomic_folder(target) as temporary:
        _copy(present.image_file(0).info.path, temporary / "images")
        _write_masks(temporary / "masks.tif", owners, present)
        _write_note(temporary, note)
    return target


def _write_masks(path: Path, owners: Mapping[int, Specimen], specimen: Specimen) -> None:
    """Write the masks of some planes, each of which a specimen has, as one stack: raw values, in the smallest type."""
    planes = sorted(owners)
    channels = {z: owners[z].mask_file(z).info.num_channels for z in planes}
    odd = next((z for z in planes if channels[z] not in (1, 3) or channels[z] != channels[planes[0]]), None)
    if odd is not None:
        raise DataError(
            f"{channels[odd]} samples a pixel",
            expected=f"1 or 3, and as many as {owners[planes[0]].mask_where(planes[0])} has",
            where=owners[odd].mask_where(odd),
            remedy="save all masks of a stack as grey values, or all as RGB",
        )

    def codes_yx(z: int) -> npt.NDArray[np.integer]:
        return pixel_codes(owners[z].raw_mask(z), owners[z].mask_where(z))[0]

    if channels[planes[0]] == 3:
        pages: Iterator[npt.NDArray[np.generic]] = (owners[z].raw_mask(z) for z in planes)
    else:
        limits = [(int(codes.min()), int(codes.max())) for codes in map(codes_yx, planes)]
        ends = [end for pair in limits for end in pair]
        dtype = np.result_type(np.min_scalar_type(min(ends)), np.min_scalar_type(max(ends)))
        pages = (codes_yx(z).astype(dtype) for z in planes)
    write_stack(path, pages, num_planes=len(planes), voxel_size_zyx_um=specimen.voxel_size_zyx_um())


def copy_specimen(specimen: Specimen, data: Path, name: str) -> Path:
    """Copy a specimen's files into data/<name>/, whole or not at all.

    Files are copied byte for byte, but masks that are single files of a stack's planes become a stack.
    Where there is something to note (planes, axes, where the files came from), specimen.yaml says it.
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
            if isinstance(specimen.masks, SingleFiles):
                _write_masks(temporary / "masks.tif", dict.fromkeys(specimen.labelled, specimen), specimen)
            else:
                _copy(specimen.masks.info.path, temporary / "masks")
        _write_note(temporary, specimen.note)
    return target


def _write_note(folder: Path, note: SpecimenNote) -> None:
    with (folder / NOTE_FILE).open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(note.model_dump(mode="json", exclude_none=True), file)


def _copy(source: Path, target: Path) -> None:
    """Copy an image file byte for byte to `target` plus .tif or .png."""
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, target.with_name(f"{target.name}{'.png' if source.suffix.lower() == '.png' else '.tif'}"))


def _sources(images: Path, masks: Path, chosen: Sequence[Path] | None = None) -> dict[str, str]:
    """Return name and SHA-256 of the added files, or of a folder's list of them; of the masks only those chosen."""
    pairs = (("images", images, None), ("masks", masks, chosen))
    return {kind: f"{path.name} sha256:{_sha256(path, files)}" for kind, path, files in pairs}


def _sha256(path: Path, files: Sequence[Path] | None = None) -> str:
    if path.is_dir():
        listed = "".join(f"{one.name} {_sha256(one)}\n" for one in sorted(files or list_images(path)))
        return hashlib.sha256(listed.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stem(path: Path) -> str:
    return path.name.removesuffix(path.suffix).removesuffix(".ome")


def name_of(images: Path) -> str:
    """Return a specimen's name from its files: that of a folder above where the file is only called images."""
    stem = _stem(images) if images.is_file() else (images.name or images.resolve().name)
    folders = [one.name for one in images.resolve().parents]
    no_names = (*RESERVED_NAMES, "image", "mask", "stack", "")
    name = next(one for one in (stem, *folders, "specimen") if one.lower() not in no_names)
    name = unicodedata.normalize("NFC", name)[:_LONGEST_NAME]
    return "".join(one if one.isalnum() or one in "._-" else "_" for one in name).strip("._-") or "specimen"
