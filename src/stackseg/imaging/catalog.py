"""The catalogue: specimens, planes, split, leakage and intensity statistics of one data set."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from stackseg.aside import write_text_aside
from stackseg.errors import DataError, ParamsError
from stackseg.imaging.channels import apply_colour
from stackseg.imaging.digests import data_digest
from stackseg.imaging.intensity import IntensityPolicy, fit_statistics
from stackseg.imaging.labels import IGNORE_INDEX, LabelTable
from stackseg.imaging.leakage import Leakage, measure_leakage, reduce_plane, require_test_apart
from stackseg.imaging.profile import PlaneFigures, Profile, plane_figures, profile_of
from stackseg.imaging.specimens import Specimen, find_specimens
from stackseg.imaging.splits import Part, PlaneRef, assign_parts
from stackseg.params import Params
from stackseg.params.split import SplitParams

FORMAT = 1
PARTS: tuple[Part, ...] = ("training", "validation", "test", "gap", "unused")
GROUPS_FILE = "groups.csv"


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


class Catalog(Record):
    """Everything that training and evaluation know about the data."""

    format: int = FORMAT
    data: str
    data_md5: str
    seed: int
    classes: tuple[ClassRecord, ...]
    ignore: tuple[int | str, ...]
    split: SplitParams
    intensity: IntensityPolicy
    profile: Profile
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
        )

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


def build_catalog(
    data: Path, params: Params, *, progress: Callable[[int, int], None] = lambda done, all_: None
) -> Catalog:
    """Read all annotated planes once and describe them.

    Parameters
    ----------
    data
        Folder laid out as README.md says.
    params
        Classes, split, intensity and seed are read.
    progress
        Called with planes done and planes in all.

    Raises
    ------
    DataError, ParamsError
        Images, masks, table and split do not go together.
    """
    table = label_table(params)
    specimens = find_specimens(data)
    _check_channels(specimens, params)
    refs = [PlaneRef(one.name, z) for one in specimens for z in one.labelled]
    groups = _groups(data, specimens, params)
    parts = assign_parts(refs, params.split, params.seed, groups)
    by_name = {one.name: one for one in specimens}
    colour = params.data.colour

    def image(ref: PlaneRef) -> npt.NDArray[np.generic]:
        return by_name[ref.specimen].plane(ref.z)

    records: dict[PlaneRef, PlaneRecord] = {}
    reduced: dict[PlaneRef, npt.NDArray[np.float32]] = {}
    figures: list[tuple[PlaneFigures, ...]] = []
    for done, ref in enumerate(refs):
        image_yxc = image(ref)
        group = groups[ref] if groups else None
        records[ref] = _describe(by_name[ref.specimen], ref, image_yxc, table, parts[ref], group)
        coloured_yxc = apply_colour(image_yxc, colour, str(ref))
        reduced[ref] = reduce_plane(coloured_yxc.astype(np.float32))
        if parts[ref] == "training":
            figures.append(plane_figures(coloured_yxc))
        progress(done + 1, len(refs))

    training = [ref for ref in refs if parts[ref] == "training"]
    if all(records[ref].constant for ref in training):
        raise DataError(
            f"all {len(training)} training planes are constant", where=str(data), remedy="check the images' export"
        )
    statistics = None
    if params.intensity.scope == "dataset":
        coloured = (apply_colour(image(ref), colour, str(ref)) for ref in training)
        statistics = fit_statistics(coloured, len(training), params.intensity)
    leakage = measure_leakage(reduced, parts)
    specimen_records = tuple(_specimen_record(one, records) for one in specimens)
    catalog = Catalog(
        data=str(data),
        data_md5=data_digest(data),
        seed=params.seed,
        classes=tuple(ClassRecord(name=c.name, raw=c.codes, display=c.display) for c in params.data.classes),
        ignore=table.ignore,
        split=params.split,
        intensity=IntensityPolicy(params=params.intensity, colour=colour, statistics=statistics),
        profile=profile_of(figures),
        leakage=leakage,
        specimens=specimen_records,
        class_fractions={},
        warnings=(),
    )
    return _completed(catalog)


def fold_catalog(catalog: Catalog, data: Path, *, fold: int, folds: int) -> Catalog:
    """Return the catalogue of one fold of the same data: another validation part, and statistics to go with it.

    The test part stays as it is and is not read; the leakage is that of the planes outside it.

    Parameters
    ----------
    catalog
        The data set, already described.
    data
        Its folder.
    fold, folds
        Which fold validates, and of how many.

    Raises
    ------
    DataError
        There are fewer planes, groups or specimens than folds, or a class is missing from the training part.
    """
    split = SplitParams(**catalog.split.model_dump() | {"folds": folds, "fold": fold})
    described = dict(catalog.planes(*PARTS))
    # all folds, so that an empty one is told of before the first is trained
    parts = catalog.fold_parts(folds)[fold]
    by_name = {one.name: one for one in find_specimens(data)}
    policy = catalog.intensity

    def image(ref: PlaneRef) -> npt.NDArray[np.generic]:
        return apply_colour(by_name[ref.specimen].plane(ref.z), policy.colour, str(ref))

    reduced: dict[PlaneRef, npt.NDArray[np.float32]] = {}
    figures: list[tuple[PlaneFigures, ...]] = []
    for ref, part in parts.items():
        if part == "test":
            continue
        coloured_yxc = image(ref)
        reduced[ref] = reduce_plane(coloured_yxc.astype(np.float32))
        if part == "training":
            figures.append(plane_figures(coloured_yxc))
    training = [ref for ref, part in parts.items() if part == "training"]
    if all(described[ref].constant for ref in training):
        raise DataError(
            f"all {len(training)} training planes of fold {fold} are constant",
            where=str(data),
            remedy="check the images' export",
        )
    statistics = None
    if policy.params.scope == "dataset":
        statistics = fit_statistics((image(ref) for ref in training), len(training), policy.params)
    return _completed(
        catalog.model_copy(
            update={
                "split": split,
                "intensity": policy.model_copy(update={"statistics": statistics}),
                "profile": profile_of(figures),
                "leakage": measure_leakage(reduced, {ref: parts[ref] for ref in reduced}),
                "specimens": tuple(_with_parts(one, parts) for one in catalog.specimens),
            }
        )
    )


def _with_parts(specimen: SpecimenRecord, parts: Mapping[PlaneRef, Part]) -> SpecimenRecord:
    planes = [plane.model_copy(update={"part": parts[PlaneRef(specimen.name, plane.z)]}) for plane in specimen.planes]
    return specimen.model_copy(update={"planes": tuple(planes)})


def _completed(catalog: Catalog) -> Catalog:
    """Return a catalogue with what follows from its planes' parts."""
    _check_training_classes(catalog)
    return catalog.model_copy(
        update={
            "class_fractions": {part: _fractions(catalog, part) for part in PARTS if catalog.planes(part)},
            "warnings": tuple(_warnings(catalog)),
        }
    )


def write_catalog(path: Path, catalog: Catalog) -> None:
    """Write outputs/catalog.json aside and put it in place."""
    write_text_aside(path, catalog.model_dump_json(indent=1) + "\n")


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
    except (ValidationError, json.JSONDecodeError, AttributeError) as error:
        short = " ".join(str(error).split())[:160]
        raise DataError(f"not a catalogue ({short})", where=str(path), remedy="`dvc repro -f catalog`") from None


def require_described_by(catalog: Catalog, params: Params, where: Path) -> None:
    """Refuse a catalogue that was written under other params; the data themselves are not read.

    Raises
    ------
    ParamsError
        Split, seed, intensity, colour or classes are not those of the catalogue.
    """
    pairs = {
        "seed": (catalog.seed, params.seed),
        "split": (catalog.split, params.split),
        "intensity": (catalog.intensity.params, params.intensity),
        "data.colour": (catalog.intensity.colour, params.data.colour),
        "data.classes": (catalog.table, label_table(params)),
    }
    changed = [key for key, (found, wanted) in pairs.items() if found != wanted]
    if changed:
        raise ParamsError(
            f"{', '.join(changed)} of params.yaml changed since the catalogue was written",
            where=str(where),
            remedy="`dvc repro catalog` describes the data anew",
        )


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
        ignore=() if params.data.ignore is None else (params.data.ignore,),
    )


def _describe(
    specimen: Specimen,
    ref: PlaneRef,
    image_yxc: npt.NDArray[np.generic],
    table: LabelTable,
    part: Part,
    group: str | None,
) -> PlaneRecord:
    labels_yx = specimen.labels(ref.z, table)
    pixels = np.bincount(labels_yx.ravel(), minlength=IGNORE_INDEX + 1)
    return PlaneRecord(
        z=ref.z,
        part=part,
        shape_yx=(image_yxc.shape[0], image_yxc.shape[1]),
        image_sha256=pixel_digest(image_yxc),
        mask_sha256=pixel_digest(labels_yx),
        class_pixels=tuple(int(n) for n in pixels[: len(table.names)]),
        ignored_pixels=int(pixels[IGNORE_INDEX]),
        constant=bool((image_yxc == image_yxc[0, 0]).all()),
        group=group,
    )


def pixel_digest(array: npt.NDArray[np.generic]) -> str:
    """Return the SHA-256 over type, shape and little-endian pixels of an array."""
    head = f"{array.dtype.name} {array.shape} ".encode()
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return hashlib.sha256(head + little.tobytes()).hexdigest()


def _specimen_record(specimen: Specimen, records: Mapping[PlaneRef, PlaneRecord]) -> SpecimenRecord:
    info = specimen.image_file(0).info
    return SpecimenRecord(
        name=specimen.name,
        num_planes=len(specimen),
        num_channels=info.num_channels,
        dtype=info.dtype,
        is_stack=specimen.is_stack,
        voxel_size_zyx_um=specimen.voxel_size_zyx_um(),
        notes=info.notes,
        planes=tuple(records[PlaneRef(specimen.name, z)] for z in specimen.labelled),
    )


def _check_channels(specimens: Sequence[Specimen], params: Params) -> None:
    if params.data.colour != "keep":
        return
    first = specimens[0].image_file(0).info
    for specimen in specimens:
        for z in specimen.labelled if not specimen.is_stack else (0,):
            info = specimen.image_file(z).info
            if info.num_channels != first.num_channels:
                raise DataError(
                    f"{info.num_channels} channels",
                    expected=f"{first.num_channels}, as {first.path} has",
                    where=str(info.path),
                    remedy="set data.colour in params.yaml to grey or rgb to bring all to one kind",
                )
            if info.dtype != first.dtype:
                raise DataError(
                    f"pixels of type {info.dtype}",
                    expected=f"{first.dtype}, as {first.path} has",
                    where=str(info.path),
                    remedy="bring all images to one type: their intensities are compared",
                )


def _groups(data: Path, specimens: Sequence[Specimen], params: Params) -> dict[PlaneRef, str] | None:
    if params.split.method != "groups":
        return None
    if params.split.group_size is not None:
        size = params.split.group_size
        return {PlaneRef(one.name, z): f"{one.name}:{z // size}" for one in specimens for z in one.labelled}
    path = data / GROUPS_FILE
    if not path.exists():
        raise DataError(
            "no such file", where=str(path), remedy="write it (specimen,plane,group), or set split.group_size"
        )
    with path.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    try:
        groups = {PlaneRef(row["specimen"], int(row["plane"])): row["group"] for row in rows}
    except (KeyError, ValueError, TypeError):
        raise DataError(
            "columns or numbers are missing", expected="specimen,plane,group with plane numbers", where=str(path)
        ) from None
    for specimen in specimens:
        for z in specimen.labelled:
            if PlaneRef(specimen.name, z) not in groups:
                raise DataError(f"no group for {specimen.name}/{z}", where=str(path), remedy="add its line")
    return groups


def _check_training_classes(catalog: Catalog) -> None:
    missing = [one.name for one, n in zip(catalog.classes, catalog.class_pixels("training"), strict=True) if n == 0]
    if missing:
        raise DataError(
            f"class {', '.join(missing)} has no pixel in the training part",
            expected="every class of data.classes in training",
            where=catalog.data,
            remedy="choose another split (split.method: explicit), annotate more, or drop it from data.classes",
        )


def _fractions(catalog: Catalog, part: Part) -> tuple[float, ...]:
    pixels = catalog.class_pixels(part)
    total = max(1, sum(pixels))
    return tuple(round(n / total, 6) for n in pixels)


def _warnings(catalog: Catalog) -> Iterator[str]:
    for part in ("validation", "test"):
        pixels = catalog.class_pixels(part)
        for one, n in zip(catalog.classes, pixels, strict=True):
            if n == 0:
                yield f"class {one.name} has no pixel in the {part} part: its score there is null"
    constant = [str(ref) for ref, plane in catalog.planes(*PARTS) if plane.constant]
    if constant:
        yield f"{len(constant)} constant planes (first: {constant[0]})"
    leakage = catalog.leakage
    if leakage.leaks:
        yield (
            f"the split leaks: held-out planes resemble their nearest training plane by {leakage.nearest:.2f}, "
            f"far-apart planes each other by {leakage.far:.2f} (leakage {leakage.figure:.2f}; worst "
            f"{leakage.worst_plane} ~ {leakage.worst_nearest}, {leakage.worst_similarity:.2f}): scores flatter"
        )
    sizes = {s.voxel_size_zyx_um for s in catalog.specimens if s.voxel_size_zyx_um is not None}
    if len(sizes) > 1:
        yield f"specimens differ in voxel size: {', '.join(str(one) for one in sorted(sizes, key=str))} µm"
    for specimen in catalog.specimens:
        for note in specimen.notes:
            yield f"{specimen.name}: {note}"
