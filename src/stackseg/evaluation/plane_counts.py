"""Confusion, boundary and neuron counts of a bundle on the planes of one part, by `segment()`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stackseg.dataset.fingerprints import by_specimen, require_same_plane
from stackseg.dataset.records import Catalog, PlaneRecord
from stackseg.dataset.splits import Part, PlaneRef
from stackseg.errors import DataError, ParamsError
from stackseg.evaluation.bootstrap import tile_counts
from stackseg.evaluation.boundary_metrics import BoundaryCounts, boundary_counts
from stackseg.evaluation.rand_vi import NeuronScore, neuron_score
from stackseg.model.bundle import Bundle
from stackseg.model.confusion import confusion_counts
from stackseg.model.segment import segment
from stackseg.params.evaluate import EvaluateParams

TILE = 128
"""Side in pixels of the tiles of the interval within planes."""


@dataclass(frozen=True)
class PlaneCounts:
    """What one plane adds to the sums."""

    ref: PlaneRef
    record: PlaneRecord
    counts_cc: npt.NDArray[np.int64]
    tiles_tcc: npt.NDArray[np.int64]
    boundary: BoundaryCounts
    neuron: NeuronScore | None


def count_planes(
    bundle: Bundle,
    catalog: Catalog,
    data: Path,
    params: EvaluateParams,
    *,
    part: Part = "test",
    only: Collection[PlaneRef] | None = None,
    progress: Callable[[int, int], None] = lambda done, all_: None,
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
        for plane in segment(specimen, bundle, planes=[ref.z for ref in refs]):
            ref = PlaneRef(specimen.name, plane.z)
            truth_yx = specimen.labels(plane.z, catalog.table)
            require_same_plane(ref, specimen.plane(plane.z), truth_yx, records[ref])
            found.append(
                PlaneCounts(
                    ref,
                    records[ref],
                    confusion_counts(truth_yx, plane.mask_yx, num_classes),
                    tile_counts(truth_yx, plane.mask_yx, num_classes, TILE),
                    boundary_counts(truth_yx, plane.mask_yx, num_classes, tolerance_px=params.boundary_tolerance),
                    None if membrane is None else neuron_score(truth_yx, plane.mask_yx, membrane),
                )
            )
            progress(len(found), len(records))
    return found


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
