"""The catalogue: specimens, planes, split, leakage and intensity statistics of one data set."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from stackseg.atomic import write_text
from stackseg.dataset.intensity_profile import IntensityProfile
from stackseg.dataset.labels.table import LabelTable
from stackseg.dataset.leakage import Leakage, require_test_apart
from stackseg.dataset.normalisation import IntensityPolicy
from stackseg.dataset.splits import Part, PlaneRef, assign_parts
from stackseg.errors import DataError, ParamsError, one_line
from stackseg.params import Params
from stackseg.params.split import SplitParams

FORMAT = 1
PARTS: tuple[Part, ...] = ("training", "validation", "test", "gap", "unused")


class Record(BaseModel):
    """Frozen part of the catalogue."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassRecord(Record):
    """A class as mapped: its index is its place in the list."""

    name: str
    raw: tuple[int | str, ...]
    display: str


class PlaneRecord(Record):
    """An annotated plane; digests are SHA-256 of the decoded pixels."""

    z: int
    part: Part
    shape_yx: tuple[int, int]
    image_sha256: str
    mask_sha256: str
    class_pixels: tuple[int, ...]
    ignored_pixels: int
    constant: bool
    group: str | None = None


class SpecimenRecord(Record):
    """A specimen and its annotated planes."""

    name: str
    num_planes: int
    num_channels: int
    dtype: str
    is_stack: bool
    voxel_size_zyx_um: tuple[float | None, float | None, float | None] | None
    notes: tuple[str, ...]
    planes: tuple[PlaneRecord, ...]
    # classes that nobody annotated here; as `instances` below, left out where it says nothing
    not_annotated: tuple[str, ...] = Field((), exclude_if=lambda names: not names)


class Catalog(Record):
    """Everything that training and evaluation know about the data."""

    format: int = FORMAT
    data: str
    data_md5: str
    seed: int
    classes: tuple[ClassRecord, ...]
    ignore: tuple[int | str, ...]
    # left out of the digest where it says nothing, so that older catalogues keep theirs
    instances: bool = Field(False, exclude_if=lambda instances: not instances)
    unlabelled: Literal["ignore"] | None = Field(None, exclude_if=lambda unlabelled: unlabelled is None)
    split: SplitParams
    intensity: IntensityPolicy
    profile: IntensityProfile
    leakage: Leakage
    specimens: tuple[SpecimenRecord, ...]
    class_fractions: dict[Part, tuple[float, ...]]
    warnings: tuple[str, ...]

    @property
    def table(self) -> LabelTable:
        """The table of raw values."""
        return LabelTable(
            names=tuple(one.name for one in self.classes),
            raw=tuple(one.raw for one in self.classes),
            display=tuple(one.display for one in self.classes),
            ignore=self.ignore,
            instances=self.instances,
            ignores_unlabelled=self.unlabelled == "ignore",
        )

    def table_of(self, specimen: str) -> LabelTable:
        """Return the table for one specimen, which ignores the classes that nobody annotated there."""
        names = next(one.not_annotated for one in self.specimens if one.name == specimen)
        table = self.table
        return replace(table, not_annotated=tuple(table.names.index(name) for name in names))

    @property
    def num_channels(self) -> int:
        """Channels of a plane after the colour policy."""
        return {"keep": self.specimens[0].num_channels, "grey": 1, "rgb": 3}[self.intensity.colour]

    def planes(self, *parts: Part) -> list[tuple[PlaneRef, PlaneRecord]]:
        """Return the annotated planes of the named parts, in order."""
        return [
            (PlaneRef(specimen.name, plane.z), plane)
            for specimen in self.specimens
            for plane in specimen.planes
            if plane.part in parts
        ]

    def class_pixels(self, part: Part) -> list[int]:
        """Return the pixels of each class in a part."""
        counts = np.array([plane.class_pixels for _, plane in self.planes(part)], np.int64)
        return [int(n) for n in counts.reshape(-1, len(self.classes)).sum(0)]

    def require_test_apart(self, context_slices: int, *, folds: int | None = None) -> None:
        """Refuse context (2.5D) by which planes of the test part would be input of training or validation.

        Parameters
        ----------
        context_slices
            Neighbours on each side.
        folds
            Ask it of each of so many folds instead; see `fold_catalog`.

        Raises
        ------
        ParamsError
            They reach a test plane.
        """
        depths = {one.name: one.num_planes for one in self.specimens}
        own = {ref: plane.part for ref, plane in self.planes(*PARTS)}
        for parts in [own] if folds is None else self.fold_parts(folds):
            require_test_apart(parts, depths, context_slices)

    def require_test_unread(self) -> None:
        """Refuse intensities that are those of whole specimens where some hold planes of the test part beside others.

        Raises
        ------
        ParamsError
            Pixels of test planes would be among those that training and validation are standardised by.
        """
        if self.intensity.params.scope != "specimen":
            return
        for one in self.specimens:
            if {"test"} < {plane.part for plane in one.planes}:
                raise ParamsError(
                    f"intensities of the whole of {one.name}, its test planes among them, would reach the training",
                    expected="intensity.scope dataset or plane, or test planes in specimens of their own",
                    where="intensity.scope",
                    remedy="set it to dataset, then `dvc repro catalog`; or choose split.method: specimens",
                )

    def fold_parts(self, folds: int) -> list[dict[PlaneRef, Part]]:
        """Return the part of each annotated plane in each of so many folds; the test part is that of all.

        Raises
        ------
        DataError
            There are fewer planes, groups or specimens than folds.
        """
        described = dict(self.planes(*PARTS))
        groups = {ref: plane.group for ref, plane in described.items() if plane.group is not None}
        splits = [SplitParams(**self.split.model_dump() | {"folds": folds, "fold": one}) for one in range(folds)]
        return [assign_parts(list(described), split, self.seed, groups) for split in splits]

    def digest(self) -> str:
        """Return the SHA-256 over everything but the folder's name."""
        text = json.dumps(self.model_dump(mode="json", exclude={"data"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def write_catalog(path: Path, catalog: Catalog) -> None:
    """Write outputs/catalog.json, whole or not at all."""
    write_text(path, catalog.model_dump_json(indent=1) + "\n")


def read_catalog(path: Path) -> Catalog:
    """Read outputs/catalog.json.

    Raises
    ------
    DataError
        The file is missing, damaged or of a newer format.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree.get("format", 0) > FORMAT:
            raise DataError(f"format {tree['format']}", expected=f"{FORMAT}", where=str(path), remedy="update stackseg")
        return Catalog.model_validate(tree)
    except FileNotFoundError:
        raise DataError(
            "no such file", where=str(path), remedy="`dvc repro catalog` or `stackseg catalog` writes it"
        ) from None
    except (ValueError, AttributeError) as error:  # no text, no JSON, no mapping, not these fields
        raise DataError(
            f"not a catalogue ({one_line(error)})", where=str(path), remedy="`dvc repro -f catalog`"
        ) from None


def require_described_by(catalog: Catalog, params: Params, where: Path) -> None:
    """Refuse a catalogue that was written under other params; the data themselves are not read.

    Raises
    ------
    ParamsError
        Split, seed, intensity, colour, classes or what is not annotated are not those of the catalogue.
    """
    pairs = {
        "seed": (catalog.seed, params.seed),
        "split": (catalog.split, params.split),
        "intensity": (catalog.intensity.params, params.intensity),
        "data.colour": (catalog.intensity.colour, params.data.colour),
        "data.classes": (_classes(catalog.table), _classes(label_table(params))),
        "data.instances": (catalog.instances, params.data.instances),
        "data.unlabelled": (catalog.unlabelled, params.data.unlabelled),
        "data.partial": (
            {one.name: set(one.not_annotated) for one in catalog.specimens if one.not_annotated},
            {name: set(classes) for name, classes in params.data.partial.items() if classes},
        ),
    }
    changed = [key for key, (found, wanted) in pairs.items() if found != wanted]
    if changed:
        raise ParamsError(
            f"{', '.join(changed)} of params.yaml changed since the catalogue was written",
            where=str(where),
            remedy="`dvc repro catalog` describes the data anew",
        )


def _classes(table: LabelTable) -> LabelTable:
    return replace(table, instances=False, ignores_unlabelled=False)


def label_table(params: Params) -> LabelTable:
    """Return the table of `data.classes`."""
    classes = params.data.classes
    if len(classes) < 2:
        raise ParamsError(
            f"data.classes names {len(classes)} classes",
            expected="two or more",
            where="params.yaml",
            remedy="`stackseg add IMAGES MASKS` writes the table",
        )
    return LabelTable(
        names=tuple(one.name for one in classes),
        raw=tuple(one.codes for one in classes),
        display=tuple(one.display for one in classes),
        ignore=params.data.ignored,
        instances=params.data.instances,
        ignores_unlabelled=params.data.unlabelled == "ignore",
    )
