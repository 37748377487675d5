"""How sure a score is: bootstrap intervals over independent units whose confusion counts are summed anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy import special, stats

from stackseg.model.confusion import Counts, confusion_counts, iou_per_class, mean_of_present

Statistic = Callable[[Counts], float | None]

MIN_UNITS = 5
_METHOD = "bootstrap standard error, Student's t of the effective units, logit scale"
_FINE = 1000  # a unit that is added to so many times all units shifts the score in proportion to its influence


class Interval(BaseModel):
    """A confidence interval, or the reason why there is none (then `low` and `high` are None).

    `unit` says what was resampled and `num_units` how many of them hold counted pixels; `effective_units` is smaller
    where a few of them decide the score. `num_left_out` of the `num_samples` resamples had no defined score.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: float | None = None
    high: float | None = None
    confidence: float
    num_units: int
    effective_units: float | None = None
    unit: str
    method: str
    num_samples: int = 0
    num_left_out: int = 0
    reason: str | None = None


def bootstrap_interval(
    counts_u: Counts,
    statistic: Statistic,
    *,
    num_samples: int,
    confidence: float,
    seed: int,
    unit: str = "plane",
    lowest: float = 0.0,
) -> Interval:
    """Draw units with replacement, sum their counts, and take from the spread of the scores how sure the score is.

    Parameters
    ----------
    counts_u
        (U, …) counts of U independent units, usually (U, C, C); units without a counted pixel are left out.
    statistic
        From summed (…) counts to a score that depends on their proportions only, or None where it is undefined.
    num_samples
        How many times to draw; 2000 is usual.
    confidence
        For example 0.95.
    seed
        Equal seeds draw equal units.
    unit
        What a unit is, in words.
    lowest
        The least value that the score can take, 0 or, of a difference, -1; the largest is 1.

    Notes
    -----
    The interval is score ± t × standard deviation of the resamples, on the logit scale, so that it stays within the
    score's range and is longer towards the middle of it. Where one plane in twenty is much worse than the others, or
    holds most of a class, many test parts miss such planes, and their own spread is too small. So Student's t has the
    degrees of freedom of the *effective* units (`_effective_units`), which are fewer where few units make up the
    spread. docs/explanation/intervals.md says how often such intervals held the truth; benchmarks/coverage.py counts.
    """
    occupied_u = counts_u[counts_u.reshape(len(counts_u), -1).sum(axis=1) > 0]
    num_units = len(occupied_u)
    interval = partial(Interval, confidence=confidence, num_units=num_units, unit=unit, method=_METHOD)
    if num_units < MIN_UNITS:
        return interval(reason=f"{num_units} independent units ({unit}); resampling needs at least {MIN_UNITS}")
    score = statistic(occupied_u.sum(axis=0))
    if score is None:
        return interval(reason="the score is undefined on all units together")
    counts_uk = occupied_u.reshape(num_units, -1)
    rng = np.random.default_rng(seed)
    even_u = np.full(num_units, 1 / num_units)
    # One draw at a time: with thousands of tiles, all weights at once would fill gigabytes.
    drawn = [
        statistic((rng.multinomial(num_units, even_u) @ counts_uk).reshape(counts_u.shape[1:]))
        for _ in range(num_samples)
    ]
    defined = [value for value in drawn if value is not None]
    interval = partial(interval, num_samples=num_samples, num_left_out=num_samples - len(defined))
    if not defined:
        return interval(reason="the score is undefined in every resample")
    if min(defined) == max(defined):
        return interval(low=score, high=score, effective_units=num_units)
    effective = _effective_units(occupied_u, statistic)
    t = stats.t.ppf((1 + confidence) / 2, min(effective, num_units - 1))
    # resamples of U units vary less than samples of U units do, by (U - 1) / U
    error = t * float(np.std(defined)) * math.sqrt(num_units / (num_units - 1))
    share = (score - lowest) / (1 - lowest)
    slope = (1 - lowest) * share * (1 - share)
    low, high = special.expit(special.logit(share) + np.array([-error, error]) / slope).tolist()
    return interval(
        low=lowest + (1 - lowest) * low, high=lowest + (1 - lowest) * high, effective_units=round(effective, 1)
    )


def mean_iou_of_same_classes(counts_ucc: Counts) -> Statistic:
    """Return mean IoU over the classes that occur in all units together, for resampling.

    A resample that happens to miss one of them is undefined, for its mean over the rest would be another quantity: a
    rare, hard class left out makes mean IoU jump.

    Parameters
    ----------
    counts_ucc
        (U, C, C) confusion counts of the units that will be resampled.
    """
    present = [index for index, iou in enumerate(iou_per_class(counts_ucc.sum(axis=0))) if iou is not None]

    def mean_iou_of_present(counts_cc: Counts) -> float | None:
        ious = iou_per_class(counts_cc)
        values = [ious[index] for index in present]
        return None if None in values else mean_of_present(values)

    return mean_iou_of_present


def gain_of_same_classes(counts_u2cc: Counts) -> Statistic:
    """Return how much the first of two models gains in mean IoU over the second, for resampling both together.

    Only the classes that the truth holds count: of a class that only one of the models predicts, the other has no IoU.

    Parameters
    ----------
    counts_u2cc
        (U, 2, C, C) confusion counts of both models on the units that will be resampled.
    """
    true_classes = np.flatnonzero(counts_u2cc[:, 0].sum(axis=(0, 2)))

    def gain(counts_2cc: Counts) -> float | None:
        first, second = ([iou_per_class(one)[index] for index in true_classes] for one in counts_2cc)
        # a resample without one of them would compare another mean
        if not true_classes.size or not counts_2cc[0].sum(axis=1)[true_classes].all():
            return None
        means = mean_of_present(first), mean_of_present(second)
        return None if means[0] is None or means[1] is None else means[0] - means[1]

    return gain


def group_into_blocks(
    specimen_of_plane: Sequence[str], z_of_plane: Sequence[int], block_planes: int
) -> list[list[int]]:
    """Group planes of a stack into contiguous blocks along z, for neighbouring planes are not independent.

    Within a specimen, planes that lie closer than `block_planes` to the next form a run, and each run is cut evenly
    into blocks that extend over at least `block_planes` planes (or the whole run, if it is shorter).

    Parameters
    ----------
    specimen_of_plane, z_of_plane
        Specimen and position along z, in planes, of each plane.
    block_planes
        Distance in planes from which on two planes count as independent.

    Returns
    -------
    blocks
        Lists of positions in `specimen_of_plane`; each position is in exactly one block.
    """
    blocks: list[list[int]] = []
    for specimen in dict.fromkeys(specimen_of_plane):
        members = [i for i, name in enumerate(specimen_of_plane) if name == specimen]
        members.sort(key=lambda i: z_of_plane[i])
        for run in _runs(members, z_of_plane, block_planes):
            first = z_of_plane[run[0]]
            extent = z_of_plane[run[-1]] - first + 1
            num_blocks = max(1, extent // block_planes)
            by_block: dict[int, list[int]] = {}
            for i in run:
                by_block.setdefault((z_of_plane[i] - first) * num_blocks // extent, []).append(i)
            blocks.extend(by_block.values())
    return blocks


def tile_counts(
    truth_yx: npt.NDArray[np.integer], prediction_yx: npt.NDArray[np.integer], num_classes: int, tile: int = 128
) -> Counts:
    """Count the confusions of each tile of a plane, for an interval that says how sure the score is within planes.

    Such an interval knows nothing of how planes differ from each other; give it the unit
    "128-pixel tile within plane".

    Parameters
    ----------
    truth_yx, prediction_yx
        (Y, X) class indices; truth may hold `IGNORE_INDEX`.
    num_classes
        The number of classes C of the table.
    tile
        Edge of a tile in pixels; those at the far edges are smaller where the plane is no multiple of it.

    Returns
    -------
    counts_tcc
        (T, C, C), which sum to the counts of the plane.
    """
    num_rows, num_columns = (math.ceil(length / tile) for length in truth_yx.shape)
    windows = [
        np.s_[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
        for row in range(num_rows)
        for column in range(num_columns)
    ]
    return np.stack([confusion_counts(truth_yx[at], prediction_yx[at], num_classes) for at in windows])


def _runs(members: list[int], z_of_plane: Sequence[int], block_planes: int) -> list[list[int]]:
    runs = [[members[0]]]
    for i in members[1:]:
        if z_of_plane[i] - z_of_plane[runs[-1][-1]] < block_planes:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def _effective_units(counts_u: Counts, statistic: Statistic) -> float:
    """Return how many units share in the spread of the score: Kish's number of their squared influences, 2 at least.

    The influence of a unit is how the score changes if the unit weighs a little more. Of influences that are normally
    distributed, a third of the units count.
    """
    total = counts_u.sum(axis=0)
    weighed_u = np.array([statistic(_FINE * total + one) for one in counts_u], np.float64)
    squares_u = (weighed_u - weighed_u.mean()) ** 2
    return max(2.0, float(squares_u.sum() ** 2 / (squares_u**2).sum())) if squares_u.any() else float(len(counts_u))
