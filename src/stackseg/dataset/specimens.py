"""The layout of data/: which specimens there are, and reading their planes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stackseg.atomic import read_text
from stackseg.dataset.files.stack import Stack, open_stack
from stackseg.dataset.labels.codes import refuse_channels
from stackseg.dataset.labels.table import IGNORE_INDEX, LabelTable
from stackseg.dataset.pairing import natural_pairs
from stackseg.errors import DataError
from stackseg.params.base import yaml_problem

NOTE_FILE = "specimen.yaml"
FLAT_NAME = "specimen"
SUFFIXES = (".tif", ".tiff", ".png")


class SpecimenNote(BaseModel):
    """What `add` writes beside a specimen's files, and a user may write by hand (specimen.yaml)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    planes: list[int] | None = None
    """Which plane each page of the masks belongs to; None: every plane has one."""
    axes: str | None = None
    """Axes of images.tif, where its metadata leave them open."""
    mask_axes: str | None = None
    """Axes of masks.tif, where its metadata leave them open."""
    voxel_size_zyx_um: tuple[float, float, float] | None = None
    """Voxel size in micrometres, where the file does not tell or tells wrongly."""
    source: dict[str, str] = {}
    """Names and SHA-256 digests of the files that were added."""


class SingleFiles:
    """A folder of single-plane files as one source of planes; sizes may differ."""

    def __init__(self, paths: list[Path]) -> None:
        self._stacks = [open_stack(path) for path in paths]
        for stack in self._stacks:
            if len(stack) != 1:
                raise DataError(
                    f"{len(stack)} planes",
                    expected="one plane per file in a folder of single files",
                    where=str(stack.info.path),
                    remedy="put a stack into data/<specimen>/images.tif, with its masks in masks.tif",
                )

    def __len__(self) -> int:
        return len(self._stacks)

    def plane(self, z: int) -> npt.NDArray[np.generic]:
        """Return plane z as (Y, X, C)."""
        return self._stacks[z].plane(0)

    def of(self, z: int) -> Stack:
        """Return the file that holds plane z."""
        return self._stacks[z]


@dataclass
class Specimen:
    """One specimen: a stack, or a folder of single files, with masks for some or all of its planes.

    A source of planes for `segment()`: `plane(z)` gives (Y, X, C) in the raw type.
    """

    name: str
    images: Stack | SingleFiles
    masks: Stack | SingleFiles
    labelled: tuple[int, ...]
    note: SpecimenNote = field(default_factory=SpecimenNote)

    def __len__(self) -> int:
        return len(self.images)

    def image_file(self, z: int) -> Stack:
        """Return the open file that holds plane z."""
        return self.images.of(z) if isinstance(self.images, SingleFiles) else self.images

    def mask_file(self, z: int) -> Stack:
        """Return the open file that holds the mask of plane z."""
        return self.masks.of(self.labelled.index(z)) if isinstance(self.masks, SingleFiles) else self.masks

    @property
    def is_stack(self) -> bool:
        """Whether the planes come from one file, so that neighbours in order are neighbours in space."""
        return isinstance(self.images, Stack)

    def shape_yx(self, z: int) -> tuple[int, int]:
        """Return the shape of plane z."""
        return self.image_file(z).info.shape_yx

    def voxel_size_zyx_um(self) -> tuple[float | None, float | None, float | None] | None:
        """Return the voxel size in micrometres, as noted or as the file says."""
        return self.note.voxel_size_zyx_um or self.image_file(0).info.voxel_size_zyx_um

    def where(self, z: int) -> str:
        """Name the file and plane of an image, for messages."""
        return f"{self.image_file(z).info.path} plane {z}"

    def plane(self, z: int) -> npt.NDArray[np.generic]:
        """Return plane z as (Y, X, C) in its raw type; not-a-number is refused."""
        return self.images.plane(z)

    def mask_where(self, z: int) -> str:
        """Name the file and page of the mask of plane z, for messages."""
        page = 0 if isinstance(self.masks, SingleFiles) else self.labelled.index(z)
        return f"{self.mask_file(z).info.path} plane {page}"

    def raw_mask(self, z: int) -> npt.NDArray[np.generic]:
        """Return the mask of plane z as (Y, X, C): labels as stored, or colours.

        Raises
        ------
        DataError
            Its channels are no colours by the file's own word.
        """
        mask_yxc = self.masks.plane(self.labelled.index(z))
        if mask_yxc.shape[2] > 1 and not self.mask_file(z).info.encoding.is_colour:
            refuse_channels(mask_yxc, self.mask_where(z))
        return mask_yxc

    def labels(self, z: int, table: LabelTable) -> npt.NDArray[np.uint8]:
        """Return the class indices (Y, X) of plane z."""
        return table.map_plane(self.raw_mask(z), where=self.mask_where(z))

    def instances(self, z: int, table: LabelTable) -> npt.NDArray[np.int32]:
        """Return the numbers of the objects (Y, X) of plane z, whose masks number them; see `number_objects`."""
        return table.number_objects(self.raw_mask(z), where=self.mask_where(z))

    def truth(self, z: int, table: LabelTable) -> npt.NDArray[np.integer]:
        """Return all that the mask of plane z says: numbers of objects where masks hold these, else class indices."""
        return self.instances(z, table) if table.instances else self.labels(z, table)

    def annotated(self, table: LabelTable) -> tuple[int, ...]:
        """Return the planes that have masks; where the table ignores what is not drawn, those with a labelled pixel.

        Raises
        ------
        DataError
            None has one.
        """
        if not table.ignores_unlabelled:
            return self.labelled
        drawn = tuple(z for z in self.labelled if (self.labels(z, table) != IGNORE_INDEX).any())
        if not drawn:
            raise DataError(
                f"no pixel of any class in {len(self.labelled)} masks",
                expected=f"{', '.join(table.names)} somewhere",
                where=str(self.mask_file(self.labelled[0]).info.path),
                remedy="check the raw values of data.classes, or leave the specimen out",
            )
        return drawn

    def notes(self) -> list[str]:
        """Return what a user should hear of the files, each sentence once."""
        images = (note for z in self.labelled for note in self.image_file(z).info.notes)
        masks = (f"masks: {note}" for z in self.labelled for note in self.mask_file(z).info.notes)
        return list(dict.fromkeys((*images, *masks)))


def find_specimens(data: Path) -> list[Specimen]:
    """Open every specimen below a data folder and check images against masks.

    Raises
    ------
    DataError
        Nothing is there, a file is unreadable, or images and masks do not fit each other.
    """
    if not data.is_dir():
        raise DataError(
            "no such folder",
            where=str(data),
            remedy="`stackseg sample` writes a sample, `stackseg add IMAGES MASKS` adds your files, `dvc pull` fetches",
        )
    flat, nested = holds_images(data), specimen_folders(data)
    if flat and nested:
        raise DataError(
            f"both {data / 'images'}* and specimens in folders ({nested[0].name})",
            expected="one or the other",
            where=str(data),
            remedy=f"move the flat files into a folder {data}/<specimen>/",
        )
    if not flat and not nested:
        raise DataError(
            "no images.tif and no images/ in it or in its folders",
            where=str(data),
            remedy="`stackseg add IMAGES MASKS` puts your files there",
        )
    return [open_specimen(data, FLAT_NAME)] if flat else [open_specimen(one, one.name) for one in nested]


def specimen_folders(data: Path) -> list[Path]:
    """Return the folders of specimens directly below a data folder, in order; hidden ones are left out."""
    shown = [one for one in data.iterdir() if one.is_dir() and not one.name.startswith(".")]
    return sorted((one for one in shown if holds_images(one)), key=lambda one: one.name)


def open_specimen(folder: Path, name: str) -> Specimen:
    """Open one specimen's folder: images.tif + masks.tif, or images/ + masks/."""
    note = read_note(folder / NOTE_FILE)
    if not (folder / "images").is_dir():
        return open_files(name, _one_of(folder, "images"), _one_of(folder, "masks"), note)
    if not (folder / "masks").is_dir():
        raise DataError("images/ without masks/", where=str(folder), remedy="put the masks into masks/")
    return open_files(name, folder / "images", folder / "masks", note)


def open_files(name: str, images: Path, masks: Path, note: SpecimenNote) -> Specimen:
    """Open images and masks as a specimen: two stacks, or two folders of single files, paired by name."""
    if images.is_dir():
        pairs = natural_pairs(list_images(images), list_images(masks))
        image_files, mask_files = SingleFiles([image for image, _ in pairs]), SingleFiles([mask for _, mask in pairs])
        specimen = Specimen(name, image_files, mask_files, tuple(range(len(pairs))), note)
    else:
        image_stack, mask_stack = open_stack(images, axes=note.axes), open_stack(masks, axes=note.mask_axes)
        labelled = labelled_planes(image_stack, mask_stack, note.planes)
        specimen = Specimen(name, image_stack, mask_stack, labelled, note)
    check_shapes(specimen)
    return specimen


def labelled_planes(images: Stack, masks: Stack, planes: Iterable[int] | None) -> tuple[int, ...]:
    """Return which plane each mask page belongs to.

    Raises
    ------
    DataError
        Page counts differ and no planes are named, or the named planes do not fit.
    """
    if planes is None:
        if len(images) != len(masks):
            raise DataError(
                f"{len(masks)} masks for {len(images)} planes",
                expected="one mask per plane",
                where=str(masks.info.path),
                remedy="name the annotated planes: `stackseg add IMAGES MASKS --planes 0,50,100`",
            )
        return tuple(range(len(images)))
    chosen = tuple(planes)
    if len(chosen) != len(masks):
        raise DataError(
            f"{len(chosen)} planes named for {len(masks)} masks", where=str(masks.info.path), remedy="name one per mask"
        )
    if list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= len(images):
        raise DataError(
            f"planes {','.join(map(str, chosen))}",
            expected=f"rising numbers from 0 to {len(images) - 1}",
            where=str(images.info.path),
            remedy="count planes from 0",
        )
    return chosen


def check_shapes(specimen: Specimen) -> None:
    """Refuse masks of another size than their images."""
    for z in specimen.labelled:
        image, mask = specimen.image_file(z).info, specimen.mask_file(z).info
        if image.shape_yx != mask.shape_yx:
            raise DataError(
                f"masks of {mask.shape_yx[0]}×{mask.shape_yx[1]} pixels",
                expected=f"{image.shape_yx[0]}×{image.shape_yx[1]}, as {image.path.name} has",
                where=str(mask.path),
                remedy="export the masks at the size of the images",
            )


def read_note(path: Path) -> SpecimenNote:
    """Read specimen.yaml; an absent one says nothing."""
    if not path.exists():
        return SpecimenNote()
    try:
        return SpecimenNote.model_validate(YAML(typ="safe").load(read_text(path, DataError)) or {})
    except (ValidationError, YAMLError) as error:
        raise DataError(
            f"not a specimen note ({yaml_problem(error)})",
            where=str(path),
            remedy="its keys are planes, axes, mask_axes, voxel_size_zyx_um and source",
        ) from None


def list_images(folder: Path) -> list[Path]:
    """Return the image files of a folder; see `left_out` for what else is there.

    Raises
    ------
    DataError
        There is none, or what is called so is a folder or leads nowhere.
    """
    images, others = _images_and_others(folder)
    for one in images:
        if not one.is_file():
            raise DataError(
                "a link that leads nowhere" if one.is_symlink() else "a folder" if one.is_dir() else "a pipe or device",
                expected="an image file",
                where=str(one),
                remedy="set it aside, or mend it",
            )
    if not images:
        num_folders = sum(one.is_dir() for one in others)
        folders = f" and {num_folders} folders" if num_folders else ""
        raise DataError(
            f"{len(others) - num_folders} files{folders}, none of them {', '.join(SUFFIXES)}",
            where=str(folder),
            remedy="put TIFF files there; those in folders within are not read",
        )
    return images


def left_out(folder: Path) -> list[str]:
    """Return the names of what is not read in a folder of single files, but hidden ones."""
    return sorted(one.name for one in _images_and_others(folder)[1])


def _images_and_others(folder: Path) -> tuple[list[Path], list[Path]]:
    shown = [one for one in folder.iterdir() if not one.name.startswith(".")]
    return (
        [one for one in shown if one.suffix.lower() in SUFFIXES],
        [one for one in shown if one.suffix.lower() not in SUFFIXES],
    )


def holds_images(folder: Path) -> bool:
    """Return whether a folder is that of a specimen: it has images.tif or the like, or a folder images/."""
    return (folder / "images").is_dir() or any((folder / f"images{suffix}").exists() for suffix in SUFFIXES)


def _one_of(folder: Path, stem: str) -> Path:
    found = [folder / f"{stem}{suffix}" for suffix in SUFFIXES if (folder / f"{stem}{suffix}").exists()]
    if len(found) != 1:
        raise DataError(
            f"{len(found)} files named {stem}.*", expected="one", where=str(folder), remedy=f"keep one {stem}.tif"
        )
    return found[0]
