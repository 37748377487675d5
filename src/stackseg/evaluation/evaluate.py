"""Scores of a bundle on one part of the split: counts of its planes by `segment()`, then ratios and intervals."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from scipy import ndimage

from stackseg.dataset.fingerprints import by_specimen, require_same_plane
from stackseg.dataset.records import Catalog, PlaneRecord
from stackseg.dataset.specimens import Specimen
from stackseg.dataset.splits import Part, PlaneRef
from stackseg.errors import DataError, ParamsError
from stackseg.evaluation.bootstrap import (
    Interval,
    Statistic,
    bootstrap_interval,
    group_into_blocks,
    mean_iou_of_same_classes,
    tile_counts,
)
from stackseg.evaluation.boundary_metrics import BoundaryCounts, boundary_counts
from stackseg.evaluation.metrics import PlaneScore, Scores, plane_score, scores_from
from stackseg.evaluation.object_scores import ObjectScores, f1_at_half, object_counts, object_scores
from stackseg.evaluation.rand_vi import RandViScore, RandViScores, mean_rand_vi, rand_vi_score
from stackseg.model.bundle import Bundle
from stackseg.model.confusion import confusion_counts, count_as_first
from stackseg.model.segment import SegmentedPlane, segment
from stackseg.params.evaluate import EvaluateParams

TILE = 128
"""Side in pixels of the tiles of the interval within planes."""

Progress = Callable[[int, int], None]
MaskKeeper = Callable[[PlaneRef, npt.NDArray[np.uint8]], None]


@dataclass(frozen=True)
class PlaneCounts:
    """What one plane adds to the sums; `objects_t3` are the matches of objects, where masks number these."""

    ref: PlaneRef
    record: PlaneRecord
    counts_cc: npt.NDArray[np.int64]
    tiles_tcc: npt.NDArray[np.int64]
    boundary: BoundaryCounts
    rand_vi: RandViScore | None
    objects_t3: npt.NDArray[np.int64] | None = None


class Evaluation(BaseModel):
    """Scores of one bundle on one part of one catalogue; plain JSON.

    `mean_iou_interval` resamples independent units (blocks of planes, groups, specimens or planes, as the split has
    them); `mean_iou_interval_within_planes` resamples tiles of the same planes and says nothing about other planes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    part: Part
    mean_iou: float | None
    mean_iou_interval: Interval
    mean_iou_interval_within_planes: Interval
    scores: Scores
    rand_vi: RandViScores | None = Field(validation_alias=AliasChoices("rand_vi", "neurons"))  # its former name
    objects: ObjectScores | None = None
    planes: tuple[PlaneScore, ...]
    bundle_digest: str
    catalog_digest: str
    device: str
    precision: str
    warnings: tuple[str, ...]


def evaluate(
    bundle: Bundle,
    catalog: Catalog,
    data: Path,
    params: EvaluateParams,
    *,
    part: Part = "test",
    progress: Progress = lambda done, all_: None,
    on_mask: MaskKeeper = lambda ref, mask_yx: None,
) -> Evaluation:
    """Score a bundle on a part of the split: `count_planes`, then `summarise`."""
    planes = count_planes(bundle, catalog, data, params, part=part, progress=progress, on_mask=on_mask)
    return summarise(
        planes,
        catalog,
        params,
        part=part,
        bundle_digest=bundle.digest,
        device=bundle.device.type,
        precision=bundle.precision,
        seed=catalog.seed,
    )


def count_planes(
    bundle: Bundle,
    catalog: Catalog,
    data: Path,
    params: EvaluateParams,
    *,
    part: Part = "test",
    only: Collection[PlaneRef] | None = None,
    progress: Progress = lambda done, all_: None,
    on_mask: MaskKeeper = lambda ref, mask_yx: None,
) -> list[PlaneCounts]:
    """Segment the planes of a part and compare them with their labels.

    Parameters
    ----------
    bundle
        Its classes must be the catalogue's.
    catalog, data
        The data set and its folder.
    params
        Boundary tolerance and membrane class.
    part
        Which part; only evaluation and promotion read ``test``.
    only
        Those planes of the part; all by default.
    progress
        Called with planes done and planes in all.
    on_mask
        Called with each plane and its predicted class indices (Y, X), as they are scored: classes that nobody annotated
        there count as the first.

    Raises
    ------
    DataError
        Classes differ, or planes have changed since the catalogue was made.
    ParamsError
        `evaluate.membrane_class` is no class, or there are more than two.
    """
    _check_classes(bundle, catalog)
    membrane = _membrane_index(catalog, params)
    records = {ref: record for ref, record in catalog.planes(part) if only is None or ref in only}
    num_classes = len(catalog.classes)
    found: list[PlaneCounts] = []
    for specimen, refs in by_specimen(list(records), data):
        decoded = _DecodedOnce(specimen, bundle.inference.context_slices)
        table = catalog.table_of(specimen.name)
        for plane in segment(decoded, bundle, planes=[ref.z for ref in refs], objects=True):
            ref = PlaneRef(specimen.name, plane.z)
            require_same_plane(ref, decoded.plane(plane.z), specimen.truth(plane.z, table), records[ref])
            truth_yx = specimen.labels(plane.z, table)
            found_yx = count_as_first(plane.mask_yx, table.not_annotated)
            found.append(
                PlaneCounts(
                    ref,
                    records[ref],
                    confusion_counts(truth_yx, found_yx, num_classes),
                    tile_counts(truth_yx, found_yx, num_classes, TILE),
                    boundary_counts(truth_yx, found_yx, num_classes, tolerance_px=params.boundary_tolerance),
                    None if membrane is None else rand_vi_score(truth_yx, found_yx, membrane),
                    _object_counts(specimen, plane, catalog),
                )
            )
            on_mask(ref, found_yx)
            progress(len(found), len(records))
    return found


def summarise(
    planes: Sequence[PlaneCounts],
    catalog: Catalog,
    params: EvaluateParams,
    *,
    part: Part,
    bundle_digest: str,
    device: str,
    precision: str,
    seed: int = 0,
) -> Evaluation:
    """Sum the counts of planes and take the ratios, once.

    Parameters
    ----------
    planes
        From `count_planes`; from several folds, they are pooled.
    catalog, params
        The data set; bootstrap and confidence.
    part, bundle_digest, device, precision
        What was scored, and on what.
    seed
        Of the bootstrap.
    """
    names = [one.name for one in catalog.classes]
    boundary = functools.reduce(operator.add, (one.boundary for one in planes))
    scores = scores_from(
        np.sum([one.counts_cc for one in planes], axis=0), names, num_planes=len(planes), boundary=boundary
    )
    unit, units = independent_units(planes, catalog, params)
    units_ucc = np.array([np.sum([one.counts_cc for one in group], axis=0) for group in units])
    tiles_tcc = np.concatenate([one.tiles_tcc for one in planes])
    rand_vi = [one.rand_vi for one in planes if one.rand_vi is not None]
    return Evaluation(
        part=part,
        mean_iou=scores.mean_iou,
        mean_iou_interval=_interval(units_ucc, params, seed, unit, mean_iou_of_same_classes(units_ucc)),
        mean_iou_interval_within_planes=_interval(
            tiles_tcc, params, seed, f"{TILE}-pixel tile within plane", mean_iou_of_same_classes(tiles_tcc)
        ),
        scores=scores,
        rand_vi=mean_rand_vi(rand_vi) if rand_vi else None,
        objects=_object_scores(unit, units, params, seed),
        planes=tuple(plane_score(one.ref.specimen, one.ref.z, one.counts_cc, names) for one in planes),
        bundle_digest=bundle_digest,
        catalog_digest=catalog.digest(),
        device=device,
        precision=precision,
        warnings=(*catalog.warnings, *(f"class {name} is absent: its score is null" for name in scores.absent_classes)),
    )


def independent_units(
    planes: Sequence[PlaneCounts], catalog: Catalog, params: EvaluateParams
) -> tuple[str, list[list[PlaneCounts]]]:
    """Return what may be resampled as independent: its name, and the planes of each unit.

    That is a group, a specimen or a plane where the split says so, and a block of neighbouring planes in stacks.
    """
    method = catalog.split.method
    stacks = {one.name for one in catalog.specimens if one.is_stack}
    if method in ("specimens", "groups"):
        keys = [one.record.group if method == "groups" else one.ref.specimen for one in planes]
        pairs = list(zip(planes, keys, strict=True))
        return method.removesuffix("s"), [[one for one, key in pairs if key == unit] for unit in dict.fromkeys(keys)]
    if method == "random" or not any(one.ref.specimen in stacks for one in planes):
        return "plane", [[one] for one in planes]
    blocks = group_into_blocks([one.ref.specimen for one in planes], [one.ref.z for one in planes], params.block_planes)
    return f"block of {params.block_planes} planes", [[planes[place] for place in block] for block in blocks]


def _object_counts(specimen: Specimen, plane: SegmentedPlane, catalog: Catalog) -> npt.NDArray[np.int64] | None:
    """Return the matches of the objects of a plane; those of a model of classes are the regions of its mask."""
    if not catalog.instances:
        return None
    found_yx = ndimage.label(plane.mask_yx)[0] if plane.objects_yx is None else plane.objects_yx
    return object_counts(specimen.instances(plane.z, catalog.table), found_yx)


def _object_scores(
    unit: str, units: Sequence[Sequence[PlaneCounts]], params: EvaluateParams, seed: int
) -> ObjectScores | None:
    """Return the scores of the objects in the planes of independent units, None where masks do not number these."""
    counted = [[one.objects_t3 for one in group if one.objects_t3 is not None] for group in units]
    if not any(counted):
        return None
    units_ut3 = np.array([np.sum(group, axis=0) for group in counted])
    return object_scores(
        [one for group in counted for one in group], _interval(units_ut3, params, seed, unit, f1_at_half)
    )


def _interval(
    counts_u: npt.NDArray[np.int64], params: EvaluateParams, seed: int, unit: str, statistic: Statistic
) -> Interval:
    return bootstrap_interval(
        counts_u,
        statistic,
        num_samples=params.bootstrap_samples,
        confidence=params.confidence,
        seed=seed,
        unit=unit,
    )


class _DecodedOnce:
    """A specimen whose last planes stay decoded, so that comparing a plane with its record reads no file again."""

    def __init__(self, specimen: Specimen, context_slices: int) -> None:
        self._specimen = specimen
        self._plane = functools.lru_cache(maxsize=2 * context_slices + 1)(specimen.plane)

    def __len__(self) -> int:
        return len(self._specimen)

    def plane(self, z: int) -> npt.NDArray[np.generic]:
        """Return plane z (Y, X, C)."""
        return self._plane(z)


def _check_classes(bundle: Bundle, catalog: Catalog) -> None:
    have, want = bundle.inference.class_names, tuple(one.name for one in catalog.classes)
    if have != want:
        raise DataError(
            f"the model knows the classes {', '.join(have)}",
            expected=", ".join(want),
            remedy="train on this catalogue: `dvc repro train`",
        )


def _membrane_index(catalog: Catalog, params: EvaluateParams) -> int | None:
    if params.membrane_class is None:
        return None
    names = [one.name for one in catalog.classes]
    if params.membrane_class not in names or len(names) != 2:
        raise ParamsError(
            f"evaluate.membrane_class is {params.membrane_class!r} and the classes are {', '.join(names)}",
            expected="one of exactly two classes",
            where="params.yaml",
            remedy="name the membrane's class, or set it to null",
        )
    return names.index(params.membrane_class)
