"""Scores of a bundle on one part of the split, from the counts of its planes."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from stackseg.dataset.records import Catalog
from stackseg.dataset.splits import Part
from stackseg.evaluation.bootstrap import Interval, bootstrap_interval, group_into_blocks, mean_iou_of_same_classes
from stackseg.evaluation.metrics import PlaneScore, Scores, plane_score, scores_from
from stackseg.evaluation.plane_counts import TILE, PlaneCounts, count_planes
from stackseg.evaluation.rand_vi import NeuronScores, mean_neuron_scores
from stackseg.model.bundle import Bundle
from stackseg.model.devices import resolve_precision
from stackseg.params.evaluate import EvaluateParams

__all__ = [
    "Evaluation",
    "PlaneCounts",
    "count_planes",
    "evaluate",
    "independent_units",
    "summarise",
    "worst_and_median",
]


class Evaluation(BaseModel):
    """Scores of one bundle on one part of one catalogue; plain JSON.

    `interval` resamples independent units (blocks of planes, groups, specimens or planes, as the split has them);
    `interval_within_planes` resamples tiles of the same planes and says nothing about other planes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    part: Part
    mean_iou: float | None
    mean_iou_interval: Interval
    mean_iou_interval_within_planes: Interval
    scores: Scores
    neurons: NeuronScores | None
    planes: tuple[PlaneScore, ...]
    bundle_digest: str
    catalog_digest: str
    device: str
    precision: str
    warnings: tuple[str, ...]


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
    neurons = [one.neuron for one in planes if one.neuron is not None]
    return Evaluation(
        part=part,
        mean_iou=scores.mean_iou,
        mean_iou_interval=_interval(units_ucc, params, seed, unit),
        mean_iou_interval_within_planes=_interval(tiles_tcc, params, seed, f"{TILE}-pixel tile within plane"),
        scores=scores,
        neurons=mean_neuron_scores(neurons) if neurons else None,
        planes=tuple(plane_score(one.ref.specimen, one.ref.z, one.counts_cc, names) for one in planes),
        bundle_digest=bundle_digest,
        catalog_digest=catalog.digest(),
        device=device,
        precision=precision,
        warnings=(*catalog.warnings, *(f"class {name} is absent: its score is null" for name in scores.absent_classes)),
    )


def evaluate(
    bundle: Bundle,
    catalog: Catalog,
    data: Path,
    params: EvaluateParams,
    *,
    part: Part = "test",
    progress: Callable[[int, int], None] = lambda done, all_: None,
) -> Evaluation:
    """Score a bundle on a part of the split: `count_planes`, then `summarise`."""
    planes = count_planes(bundle, catalog, data, params, part=part, progress=progress)
    device = next(bundle.network.parameters()).device
    precision = resolve_precision(bundle.inference.precision, device)
    return summarise(
        planes,
        catalog,
        params,
        part=part,
        bundle_digest=bundle.digest,
        device=device.type,
        precision=precision,
        seed=catalog.seed,
    )


def worst_and_median(planes: Sequence[PlaneScore], num: int) -> list[tuple[str, PlaneScore]]:
    """Return up to `num` planes to look at, with their labels: the worst ones and the median one."""
    ranked = sorted((one for one in planes if one.mean_iou is not None), key=lambda one: one.mean_iou or 0.0)
    if not ranked:
        return []
    worst = ranked[: max(1, num - 1)]
    median = ranked[len(ranked) // 2]
    chosen = [(f"worst_{place + 1}", one) for place, one in enumerate(worst)]
    return chosen if median in worst or num == 1 else [*chosen, ("median", median)]


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


def _interval(counts_ucc: npt.NDArray[np.int64], params: EvaluateParams, seed: int, unit: str) -> Interval:
    return bootstrap_interval(
        counts_ucc,
        mean_iou_of_same_classes(counts_ucc),
        num_samples=params.bootstrap_samples,
        confidence=params.confidence,
        seed=seed,
        unit=unit,
    )
