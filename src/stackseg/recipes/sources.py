"""Where the data of the recipes are published, and how files that were fetched become images and masks."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tifffile
from natsort import natsorted
from pydantic import BaseModel, ConfigDict
from ruamel.yaml import YAML

from stackseg.dataset.files.stack import open_stack
from stackseg.errors import DataError, ParamsError
from stackseg.recipes.recipe import FOLDER

NAMES = ("sandstone", "nuclei", "nuclei-corrected", "mitochondria", "membranes")


class Numbers(BaseModel):
    """Numbers that file names count through, as `range` does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: int
    stop: int
    step: int


class PublishedSpecimen(BaseModel):
    """Files of one specimen below an address; with `numbers`, the names hold a place for each of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    base: str
    images: str
    masks: str
    numbers: Numbers | None = None
    values: dict[int, int] = {}
    """Class index of each mask value, where the masks say it otherwise."""

    def files(self, pattern: str) -> list[str]:
        """Return the relative names that a pattern stands for."""
        if self.numbers is None:
            return [pattern]
        return [pattern.format(n) for n in range(self.numbers.start, self.numbers.stop, self.numbers.step)]


class Archive(BaseModel):
    """A ZIP file with a folder per field, which holds images/*.png and a mask per object in masks/*.png."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    url: str

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.url.rsplit("/", 1)[-1]


class Publication(BaseModel):
    """A published data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    licence: str
    specimens: list[PublishedSpecimen] = []
    archive: Archive | None = None

    def urls(self) -> dict[str, str]:
        """Return the address of each file, by the relative name under which it is kept."""
        found = {
            file: one.base + file
            for one in self.specimens
            for kind in (one.images, one.masks)
            for file in one.files(kind)
        }
        return found if self.archive is None else {self.archive.url.rsplit("/", 1)[-1]: self.archive.url}


class ArrangedSpecimen(NamedTuple):
    """Images and masks of a specimen, as `stackseg add` takes them; `instances` are masks that number objects."""

    name: str
    images: Path
    masks: Path
    instances: Path | None = None


def read_publication(name: str) -> Publication:
    """Return what is published under a name.

    Raises
    ------
    ParamsError
        Nothing is known of that name.
    """
    if name not in NAMES:
        raise ParamsError(f"no data called {name!r}", expected=f"one of {', '.join(NAMES)}", where="NAME")
    text = FOLDER.joinpath("sources", f"{name}.yaml").read_text(encoding="utf-8")
    return Publication.model_validate(YAML(typ="safe").load(text))


def arrange(publication: Publication, files: Path, work: Path) -> list[ArrangedSpecimen]:
    """Bring files that were fetched into the form that `stackseg add` takes.

    Parameters
    ----------
    publication
        What they are.
    files
        Their folder, with the relative names of `Publication.urls`.
    work
        An empty folder for what has to be copied or converted.

    Raises
    ------
    DataError
        A file is missing, or an archive does not hold what it should.
    """
    if publication.archive is not None:
        name = publication.archive.name
        return [_unite(name, files / publication.archive.file, work / name)]
    return [_gather(one, files, work / one.name) for one in publication.specimens]


def _gather(one: PublishedSpecimen, files: Path, work: Path) -> ArrangedSpecimen:
    if one.numbers is None:
        return ArrangedSpecimen(one.name, _existing(files / one.images), _existing(files / one.masks))
    for kind, pattern in (("images", one.images), ("masks", one.masks)):
        (work / kind).mkdir(parents=True)
        for name in one.files(pattern):
            source = _existing(files / name)
            if kind == "masks" and one.values:
                with open_stack(source) as stack:
                    mask_yx = _translated(stack.plane(0)[:, :, 0], one.values, source)
                _write(work / kind / f"{source.stem}.tif", mask_yx)
            else:
                shutil.copyfile(source, work / kind / source.name)
    return ArrangedSpecimen(one.name, work / "images", work / "masks")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError("no such file", where=str(path), remedy="look where the files are, or fetch them anew")
    return path


def _translated(mask_yx: npt.NDArray[np.generic], values: dict[int, int], path: Path) -> npt.NDArray[np.uint8]:
    if strange := sorted(set(np.unique(mask_yx).tolist()) - set(values)):
        raise DataError(
            f"mask values {', '.join(map(str, strange[:5]))}",
            expected=", ".join(map(str, values)),
            where=str(path),
            remedy="these are not the masks that were published; fetch them anew",
        )
    return np.select([mask_yx == value for value in values], list(values.values())).astype(np.uint8)


def _unite(name: str, archive: Path, work: Path) -> ArrangedSpecimen:
    """Unpack fields, number the objects of a field in instances/, and unite them in masks/."""
    for kind in ("images", "masks", "instances"):
        (work / kind).mkdir(parents=True)
    try:
        with zipfile.ZipFile(_existing(archive)) as opened:
            for field, image, masks in _fields(opened):
                target = work / "images" / f"{field}.png"
                target.write_bytes(opened.read(image))
                with open_stack(target) as stack:
                    instances_yx = np.zeros(stack.info.shape_yx, np.uint16)
                for number, mask in enumerate(masks, start=1):
                    scratch = work / "object.png"
                    scratch.write_bytes(opened.read(mask))
                    with open_stack(scratch) as stack:
                        instances_yx[stack.plane(0)[:, :, 0] != 0] = number
                    scratch.unlink()
                _write(work / "masks" / f"{field}.tif", (instances_yx > 0).astype(np.uint8))
                _write(work / "instances" / f"{field}.tif", instances_yx)
    except zipfile.BadZipFile as error:
        raise DataError(f"no ZIP file ({error})", where=str(archive), remedy="fetch it anew") from None
    return ArrangedSpecimen(name, work / "images", work / "masks", work / "instances")


def _fields(opened: zipfile.ZipFile) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each field's name, its image and the masks of its objects, by their names in the archive."""
    images, masks = dict[str, str](), dict[str, list[str]]()
    for name in opened.namelist():
        parts = name.split("/")
        if len(parts) > 2 and parts[-1].endswith(".png") and parts[-2] in ("images", "masks"):
            if parts[-2] == "images":
                images[parts[-3]] = name
            else:
                masks.setdefault(parts[-3], []).append(name)
    if not images or images.keys() != masks.keys():
        raise DataError(
            f"{len(images)} fields with an image and {len(masks)} with masks",
            expected="FIELD/images/*.png and FIELD/masks/*.png for each field",
            where=str(opened.filename),
            remedy="this is not the archive that was published; fetch it anew",
        )
    for field in natsorted(images):
        yield field, images[field], natsorted(masks[field])


def _write(path: Path, pixels_yx: npt.NDArray[np.generic]) -> None:
    tifffile.imwrite(path, pixels_yx, photometric="minisblack", compression="deflate", metadata=None)
