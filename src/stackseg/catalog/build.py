"""Describe a data set: read its planes, split them, compare them across the split, measure their intensities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stackseg.catalog.checks import require_trainable, with_summary
from stackseg.catalog.groups import GROUPS_FILE, read_groups, runs_of_planes
from stackseg.catalog.partial import classes_not_annotated
from stackseg.dataset.agreement import require_agreement
from stackseg.dataset.channels import ColourPolicy, apply_colour
from stackseg.dataset.fingerprints import data_digest, pixel_digest
from stackseg.dataset.intensity_profile import PlaneFigures, intensity_profile, plane_figures
from stackseg.dataset.labels.table import IGNORE_INDEX, LabelTable
from stackseg.dataset.leakage import measure_leakage, reduce_plane
from stackseg.dataset.normalisation import IntensityPolicy, exact_type, fit_statistics
from stackseg.dataset.records import PARTS, Catalog, ClassRecord, PlaneRecord, SpecimenRecord, label_table
from stackseg.dataset.specimens import Specimen, find_specimens
from stackseg.dataset.splits import Part, PlaneRef, assign_parts
from stackseg.errors import DataError
from stackseg.params import Params
from stackseg.params.split import SplitParams


def build_catalog(
    data: Path, params: Params, *, progress: Callable[[int, int], None] = lambda done, all_: None
) -> Catalog:
    """Read all annotated planes once and describe them.

    Parameters
    ----------
    data
        Folder laid out as docs/how-to/data.md says.
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
    require_agreement(specimens, params.data.colour)
    missing = classes_not_annotated(params.data, [one.name for one in specimens])
    tables = {one.name: replace(table, not_annotated=missing[one.name]) for one in specimens}
    refs = [PlaneRef(one.name, z) for one in specimens for z in one.annotated(tables[one.name])]
    groups = plane_groups(data, specimens, params)
    parts = assign_parts(refs, params.split, params.seed, groups)
    by_name = {one.name: one for one in specimens}
    policy = IntensityPolicy(params=params.intensity, colour=params.data.colour, statistics=None)
    records: dict[PlaneRef, PlaneRecord] = {}

    def describe_all() -> Iterator[tuple[PlaneRef, npt.NDArray[np.generic]]]:
        for done, ref in enumerate(refs):
            image_yxc = by_name[ref.specimen].plane(ref.z)
            group = groups[ref] if groups else None
            records[ref] = _describe(by_name[ref.specimen], ref, image_yxc, tables[ref.specimen], parts[ref], group)
            yield ref, apply_colour(image_yxc, policy.colour, str(ref))
            progress(done + 1, len(refs))

    measured = _measure(describe_all(), parts, by_name, policy)
    return with_summary(
        Catalog(
            data=str(data),
            data_md5=data_digest(data),
            seed=params.seed,
            classes=tuple(ClassRecord(name=c.name, raw=c.codes, display=c.display) for c in params.data.classes),
            ignore=table.ignore,
            instances=table.instances,
            unlabelled=params.data.unlabelled,
            split=params.split,
            specimens=tuple(_specimen_record(one, records, tables[one.name]) for one in specimens),
            class_fractions={},
            warnings=(),
            **measured,
        )
    )


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
    split = folded(catalog, folds)[fold]
    parts = {ref: plane.part for ref, plane in split.planes(*PARTS) if plane.part != "test"}
    by_name = {one.name: one for one in find_specimens(data)}
    planes = ((ref, _coloured(by_name, ref, catalog.intensity.colour)) for ref in parts)
    return with_summary(split.model_copy(update=_measure(planes, parts, by_name, catalog.intensity)))


def folded(catalog: Catalog, folds: int) -> list[Catalog]:
    """Return the catalogue with the parts of each fold, all else being that of the whole; no plane is read.

    Raises
    ------
    DataError
        There are fewer planes, groups or specimens than folds; or in one of them a class is missing from the training
        part, all its planes are constant, or the validation part has no labelled pixel.
    """
    catalogs = []
    for fold, parts in enumerate(catalog.fold_parts(folds)):
        one = catalog.model_copy(
            update={
                "split": SplitParams(**catalog.split.model_dump() | {"folds": folds, "fold": fold}),
                "specimens": tuple(_with_parts(specimen, parts) for specimen in catalog.specimens),
            }
        )
        require_trainable(one, f"{catalog.data}, fold {fold} of {folds}")
        if not any(one.class_pixels("validation")):
            raise DataError(
                "the validation part has no labelled pixel",
                expected="some in each fold",
                where=f"{catalog.data}, fold {fold} of {folds}",
                remedy="take fewer folds, or another split",
            )
        catalogs.append(one)
    return catalogs


def _with_parts(specimen: SpecimenRecord, parts: Mapping[PlaneRef, Part]) -> SpecimenRecord:
    planes = [plane.model_copy(update={"part": parts[PlaneRef(specimen.name, plane.z)]}) for plane in specimen.planes]
    return specimen.model_copy(update={"planes": tuple(planes)})


def _measure(
    planes: Iterable[tuple[PlaneRef, npt.NDArray[np.generic]]],
    parts: Mapping[PlaneRef, Part],
    specimens: Mapping[str, Specimen],
    policy: IntensityPolicy,
) -> dict[str, Any]:
    """Return a catalogue's `intensity`, `profile` and `leakage` from planes after the colour policy, each read once.

    Statistics of the data set need the training planes once more, from their specimens.
    """
    reduced: dict[PlaneRef, npt.NDArray[np.float32]] = {}
    figures: list[tuple[PlaneFigures, ...]] = []
    for ref, coloured_yxc in planes:
        reduced[ref] = reduce_plane(coloured_yxc.astype(exact_type(coloured_yxc.dtype)))
        if parts[ref] == "training":
            figures.append(plane_figures(coloured_yxc))
    training = [ref for ref in reduced if parts[ref] == "training"]
    statistics = None
    if policy.params.scope == "dataset":
        again = (_coloured(specimens, ref, policy.colour) for ref in training)
        statistics = fit_statistics(again, len(training), policy.params)
    return {
        "intensity": policy.model_copy(update={"statistics": statistics}),
        "profile": intensity_profile(figures),
        "leakage": measure_leakage(reduced, parts),
    }


def _coloured(specimens: Mapping[str, Specimen], ref: PlaneRef, colour: ColourPolicy) -> npt.NDArray[np.generic]:
    return apply_colour(specimens[ref.specimen].plane(ref.z), colour, str(ref))


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
        mask_sha256=pixel_digest(specimen.truth(ref.z, table)),
        class_pixels=tuple(int(n) for n in pixels[: len(table.names)]),
        ignored_pixels=int(pixels[IGNORE_INDEX]),
        constant=bool((image_yxc == image_yxc[0, 0]).all()),
        group=group,
    )


def _specimen_record(specimen: Specimen, records: Mapping[PlaneRef, PlaneRecord], table: LabelTable) -> SpecimenRecord:
    info = specimen.image_file(0).info
    return SpecimenRecord(
        name=specimen.name,
        num_planes=len(specimen),
        num_channels=info.num_channels,
        dtype=info.dtype,
        is_stack=specimen.is_stack,
        voxel_size_zyx_um=specimen.voxel_size_zyx_um(),
        notes=tuple(specimen.notes()),
        planes=tuple(plane for ref, plane in records.items() if ref.specimen == specimen.name),
        not_annotated=tuple(table.names[index] for index in table.not_annotated),
    )


def plane_groups(data: Path, specimens: Sequence[Specimen], params: Params) -> dict[PlaneRef, str] | None:
    """Return the group of every annotated plane, None where the split asks for none."""
    if params.split.method != "groups":
        return None
    if params.split.group_size is not None:
        return runs_of_planes(specimens, params.split.group_size)
    return read_groups(data / GROUPS_FILE, specimens)
