"""How many objects are found: F1 and AP at several overlaps.

Truth and prediction are matched one to one: a predicted object is right if its IoU with a true one is larger than the
threshold. From 0.5 on no object can have two such partners, so there is nothing to choose. As in the Data Science Bowl
2018 (Caicedo et al. 2019, doi:10.1038/s41592-019-0612-7) and StarDist (Schmidt et al. 2018, arXiv:1806.03535),
AP = TP / (TP + FP + FN), and F1 = 2 TP / (2 TP + FP + FN).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy.sparse import coo_array

from stackseg.dataset.labels.table import IGNORED_OBJECT
from stackseg.evaluation.bootstrap import Interval
from stackseg.model.confusion import Counts, mean_of_present

PERCENTS = tuple(range(50, 100, 5))
"""The thresholds of IoU in per cent, whole so that an IoU on one of them is not moved over it by rounding."""


class ObjectScores(BaseModel):
    """F1 and AP by threshold of IoU, "0.5" to "0.95"; None where there is neither a true nor a predicted object.

    Those without `_of_planes` are of the matches of all planes together; those with it are means over the planes where
    they are defined, as the Data Science Bowl 2018 takes them. `mean_ap` is the mean of AP over the thresholds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    num_truth: int
    num_predicted: int
    f1: dict[str, float | None]
    f1_interval: Interval
    ap: dict[str, float | None]
    mean_ap: float | None
    f1_of_planes: dict[str, float | None]
    ap_of_planes: dict[str, float | None]
    mean_ap_of_planes: float | None


def object_counts(truth_yx: npt.NDArray[np.integer], predicted_yx: npt.NDArray[np.integer]) -> Counts:
    """Count the matches of one plane.

    Parameters
    ----------
    truth_yx
        (Y, X) numbers of objects, 0 for background, `IGNORED_OBJECT` where nobody knows: pixels there are of no object.
    predicted_yx
        (Y, X) numbers of objects, 0 for background.

    Returns
    -------
    counts_t3
        (T, 3) true positives, false positives and false negatives at each of `PERCENTS`.
    """
    known_yx = truth_yx != IGNORED_OBJECT
    truth_n, predicted_n = truth_yx[known_yx], predicted_yx[known_yx]
    truth_sizes = np.bincount(truth_n, minlength=1)
    predicted_sizes = np.bincount(predicted_n, minlength=1)
    num_truth, num_predicted = (int(np.count_nonzero(sizes[1:])) for sizes in (truth_sizes, predicted_sizes))
    both_n = (truth_n > 0) & (predicted_n > 0)
    pairs = (truth_n[both_n], predicted_n[both_n])
    overlaps = coo_array((np.ones(len(pairs[0]), np.int64), pairs), shape=(len(truth_sizes), len(predicted_sizes)))
    overlaps.sum_duplicates()
    shared, (truths, predictions) = overlaps.data, overlaps.coords
    united = truth_sizes[truths] + predicted_sizes[predictions] - shared
    hits_t = [int(np.count_nonzero(100 * shared > percent * united)) for percent in PERCENTS]
    return np.array([(hits, num_predicted - hits, num_truth - hits) for hits in hits_t], np.int64)


def f1_at_half(counts_t3: Counts) -> float | None:
    """Return F1 at an IoU of 0.5 from (T, 3) counts, None without an object."""
    return _f1(counts_t3[0])


def object_scores(planes: Sequence[Counts], f1_interval: Interval) -> ObjectScores:
    """Turn the counts of planes into scores.

    Parameters
    ----------
    planes
        (T, 3) counts of each.
    f1_interval
        Of `f1_at_half`.
    """
    pooled_t3 = np.sum(planes, axis=0)
    hits, false_positives, false_negatives = pooled_t3[0].tolist()
    ap = [_ap(one) for one in pooled_t3]
    f1_of_planes = [mean_of_present(_f1(counts_t3[place]) for counts_t3 in planes) for place in range(len(PERCENTS))]
    ap_of_planes = [mean_of_present(_ap(counts_t3[place]) for counts_t3 in planes) for place in range(len(PERCENTS))]
    return ObjectScores(
        num_truth=hits + false_negatives,
        num_predicted=hits + false_positives,
        f1=_by_threshold([_f1(one) for one in pooled_t3]),
        f1_interval=f1_interval,
        ap=_by_threshold(ap),
        mean_ap=mean_of_present(ap),
        f1_of_planes=_by_threshold(f1_of_planes),
        ap_of_planes=_by_threshold(ap_of_planes),
        mean_ap_of_planes=mean_of_present(ap_of_planes),
    )


def _by_threshold(values: Sequence[float | None]) -> dict[str, float | None]:
    return {f"{percent / 100:g}": value for percent, value in zip(PERCENTS, values, strict=True)}


def _f1(counts_3: Counts) -> float | None:
    hits, false_positives, false_negatives = counts_3.tolist()
    total = 2 * hits + false_positives + false_negatives
    return 2 * hits / total if total else None


def _ap(counts_3: Counts) -> float | None:
    hits, false_positives, false_negatives = counts_3.tolist()
    total = hits + false_positives + false_negatives
    return hits / total if total else None
