"""The gate: challenger and champion on the same planes, which neither has seen, and the verdict on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from stackseg.dataset.records import Catalog
from stackseg.dataset.specimens import find_specimens
from stackseg.dataset.splits import PlaneRef
from stackseg.errors import DataError
from stackseg.evaluation.bootstrap import Interval, bootstrap_interval, gain_of_same_classes
from stackseg.evaluation.evaluate import PlaneCounts, count_planes, independent_units
from stackseg.model.bundle import Bundle, BundleSpec
from stackseg.model.confusion import Ratios, iou_per_class, mean_iou
from stackseg.model.segment import segment
from stackseg.params import Params
from stackseg.params.promotion import PromotionParams

NUM_TIMINGS = 5


@dataclass(frozen=True)
class Contender:
    """A version with its bundle, loaded."""

    version: str
    bundle: Bundle
    num_bytes: int

    @property
    def spec(self) -> BundleSpec:
        """Its bundle.json."""
        return self.bundle.spec


class ClassChange(BaseModel):
    """IoU of one class of both; None where the class is absent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    challenger: float | None
    champion: float | None
    change: float | None


class Verdict(BaseModel):
    """What the gate found; `reasons` says why not, and is empty where the challenger may become the champion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    challenger: str
    champion: str | None
    num_planes: int
    num_planes_seen: int
    num_units: int
    unit: str
    challenger_mean_iou: float | None
    champion_mean_iou: float | None
    gain: Interval | None
    gain_mean_iou: float | None
    classes: tuple[ClassChange, ...]
    ms_per_megapixel: float
    megabytes: float
    catalog_digest: str
    challenger_digest: str
    champion_digest: str | None
    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the challenger may become the champion."""
        return not self.reasons

    def sentence(self) -> str:
        """Return what the version's page keeps of it."""
        state = "passed" if self.passed else f"refused: {'; '.join(self.reasons)}"
        other = f" against {_figure(self.champion_mean_iou)} of version {self.champion}" if self.champion else ""
        return f"{state} (mean IoU {_figure(self.challenger_mean_iou)}{other} on {self.num_planes} test planes)"

    def summary(self) -> dict[str, object]:
        """Return the figures that the history keeps."""
        kept = {"num_planes", "num_units", "unit", "challenger_mean_iou", "champion_mean_iou", "gain_mean_iou"}
        kept |= {"ms_per_megapixel", "megabytes", "catalog_digest", "challenger_digest", "champion_digest"}
        found = self.model_dump(mode="json", include=kept)
        changes = {one.name: [one.challenger, one.champion] for one in self.classes}
        return found | {"gain": None if self.gain is None else [self.gain.low, self.gain.high], "iou": changes}


def compare(
    challenger: Contender,
    champion: Contender | None,
    catalog: Catalog,
    data: Path,
    params: Params,
    *,
    progress: Callable[[int, int], None] = lambda done, all_: None,
) -> Verdict:
    """Score both on the test planes that neither has seen, and judge.

    Both are scored here and now by their own bundles: old scores are of other planes, code or machines.

    Parameters
    ----------
    challenger, champion
        The version that asks and the one that stands; None where there is no champion yet.
    catalog, data
        The present data set and its folder.
    params
        Sections `promotion` and `evaluate`.
    progress
        Called with planes done and planes in all, of both.

    Raises
    ------
    DataError
        No test plane is left that neither has seen, or the classes differ.
    """
    contenders = [challenger] if champion is None else [challenger, champion]
    chosen, num_seen = unseen_planes(catalog, contenders)

    def counts_of(place: int) -> list[PlaneCounts]:
        def advance(done: int, _: int) -> None:
            progress(place * len(chosen) + done, len(contenders) * len(chosen))

        return count_planes(contenders[place].bundle, catalog, data, params.evaluate, only=chosen, progress=advance)

    counted = [counts_of(place) for place in range(len(contenders))]
    return judge(
        challenger,
        champion,
        counted[0],
        counted[1] if champion is not None else None,
        catalog,
        params,
        num_seen=num_seen,
        ms_per_megapixel=measure_speed(challenger.bundle, data, chosen[0]),
    )


def unseen_planes(catalog: Catalog, contenders: Sequence[Contender]) -> tuple[list[PlaneRef], int]:
    """Return the test planes that no contender has seen in training, validation or gap, and how many were left out.

    Raises
    ------
    DataError
        None is left.
    """
    seen = {
        digest
        for one in contenders
        for digest in (*one.spec.seen.training, *one.spec.seen.validation, *one.spec.seen.gap)
    }
    test = catalog.planes("test")
    chosen = [ref for ref, plane in test if plane.image_sha256 not in seen]
    if not chosen:
        raise DataError(
            f"0 of {len(test)} test planes are new to "
            + " and ".join(f"version {one.version}" for one in contenders)
            + ": the others were seen in training or validation, or lie beside such planes",
            expected="planes to compare them on",
            where="outputs/catalog.json",
            remedy="annotate and `stackseg add` planes that neither knows, or train both on this split",
        )
    return chosen, len(test) - len(chosen)


def judge(
    challenger: Contender,
    champion: Contender | None,
    challenger_planes: Sequence[PlaneCounts],
    champion_planes: Sequence[PlaneCounts] | None,
    catalog: Catalog,
    params: Params,
    *,
    num_seen: int,
    ms_per_megapixel: float,
) -> Verdict:
    """Weigh the counts of both on the same planes, in the same order, against section `promotion`."""
    rules = params.promotion
    names = [one.name for one in catalog.classes]
    unit, units = independent_units(challenger_planes, catalog, params.evaluate)
    own_cc = np.sum([one.counts_cc for one in challenger_planes], axis=0)
    own = iou_per_class(own_cc)
    other: Ratios = (None,) * len(names)
    gain, gained, champion_mean = None, None, None
    if champion_planes is not None:
        other_of = {one.ref: one.counts_cc for one in champion_planes}
        pairs_u2cc = np.array(
            [
                [np.sum([one.counts_cc for one in group], axis=0), np.sum([other_of[one.ref] for one in group], axis=0)]
                for group in units
            ]
        )
        other_cc = pairs_u2cc[:, 1].sum(axis=0)
        other, champion_mean = iou_per_class(other_cc), mean_iou(other_cc)
        gain_of = gain_of_same_classes(pairs_u2cc)
        gained = gain_of(pairs_u2cc.sum(axis=0))
        gain = bootstrap_interval(
            pairs_u2cc,
            gain_of,
            num_samples=params.evaluate.bootstrap_samples,
            # two-sided, so that the lower end is exceeded with the confidence that was asked for
            confidence=2 * rules.confidence - 1,
            seed=catalog.seed,
            unit=unit,
            lowest=-1.0,
        )
    classes = tuple(
        ClassChange(name=name, challenger=a, champion=b, change=None if a is None or b is None else a - b)
        for name, a, b in zip(names, own, other, strict=True)
    )
    megabytes = challenger.num_bytes / 1e6
    score = mean_iou(own_cc)
    return Verdict(
        challenger=challenger.version,
        champion=None if champion is None else champion.version,
        num_planes=len(challenger_planes),
        num_planes_seen=num_seen,
        num_units=len(units),
        unit=unit,
        challenger_mean_iou=score,
        champion_mean_iou=champion_mean,
        gain=gain,
        gain_mean_iou=gained,
        classes=classes,
        ms_per_megapixel=round(ms_per_megapixel, 1),
        megabytes=round(megabytes, 1),
        catalog_digest=catalog.digest(),
        challenger_digest=challenger.bundle.digest,
        champion_digest=None if champion is None else champion.bundle.digest,
        reasons=tuple(_reasons(score, gain, classes, ms_per_megapixel, megabytes, rules)),
    )


def measure_speed(bundle: Bundle, data: Path, ref: PlaneRef) -> float:
    """Return the milliseconds per megapixel of `segment()` on one plane: the least of some runs after a first one."""
    specimen = next(one for one in find_specimens(data) if one.name == ref.specimen)
    seconds = []
    for _ in range(NUM_TIMINGS + 1):
        started = time.perf_counter()
        (plane,) = segment(specimen, bundle, planes=[ref.z])
        seconds.append(time.perf_counter() - started)
    # what else runs on the machine only ever adds to a time: the least is the least disturbed
    return 1000 * min(seconds[1:]) / (plane.mask_yx.size / 1e6)


def _reasons(
    score: float | None,
    gain: Interval | None,
    classes: Sequence[ClassChange],
    ms_per_megapixel: float,
    megabytes: float,
    rules: PromotionParams,
) -> Iterator[str]:
    """Say why not, in the order of section `promotion`."""
    if score is None or score < rules.floor_mean_iou:
        yield f"mean IoU {_figure(score)} is below promotion.floor_mean_iou {rules.floor_mean_iou}"
    for one in classes:
        if one.challenger is not None and one.challenger < rules.floor_class_iou:
            floor = f"promotion.floor_class_iou {rules.floor_class_iou}"
            yield f"IoU of {one.name} {_figure(one.challenger)} is below {floor}"
    if gain is not None and gain.low is None:
        yield (
            f"no interval for the gain: {gain.reason}; more independent test units would settle it: more annotated "
            "planes or specimens, a larger split.test, or a smaller evaluate.block_planes, where planes that far apart "
            "are independent"
        )
    elif gain is not None and gain.low is not None and gain.low <= rules.min_gain:
        yield (
            f"the gain in mean IoU is not above promotion.min_gain {rules.min_gain} with {rules.confidence:.0%} "
            f"confidence: its lower end is {gain.low:+.4f}"
        )
    for one in classes:
        if one.change is not None and -one.change > rules.max_class_drop:
            limit = f"promotion.max_class_drop {rules.max_class_drop}"
            yield f"IoU of {one.name} falls by {-one.change:.4f}, more than {limit}"
    if rules.max_ms_per_megapixel is not None and ms_per_megapixel > rules.max_ms_per_megapixel:
        limit = f"promotion.max_ms_per_megapixel {rules.max_ms_per_megapixel:g}"
        yield f"{ms_per_megapixel:.0f} ms per megapixel exceed {limit}"
    if rules.max_megabytes is not None and megabytes > rules.max_megabytes:
        yield f"{megabytes:.1f} MB exceed promotion.max_megabytes {rules.max_megabytes:g}"


def _figure(value: float | None) -> str:
    return "null" if value is None else f"{value:.4f}"
