"""Print how far grey levels alone get on the sample stack: multi-Otsu, and the best thresholds there are.

Run it as `python benchmarks/sample_difficulty.py`. The best thresholds are found by exhaustion with the masks in hand,
over the whole stack at once, so nothing that looks at one pixel at a time in order of grey level can do better.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from skimage.filters import threshold_multiotsu

from stackseg.intake.sample import SAMPLE_CLASSES, sample_stack
from stackseg.model.confusion import confusion_counts, iou_per_class, mean_of_present

NUM_BINS = 512


def main() -> None:
    """Print class fractions and the IoU of both kinds of thresholds."""
    images_zyx, masks_zyx = sample_stack()
    names = [name for name, _, _ in SAMPLE_CLASSES]
    fractions = np.bincount(masks_zyx.ravel(), minlength=len(names)) / masks_zyx.size
    print(f"{'':<16}" + "".join(f"{name:>15}" for name in [*names, "mean"]))
    print(f"{'fraction':<16}" + "".join(f"{fraction:>15.3f}" for fraction in fractions))
    # as float: of integer images scikit-image makes one bin per grey level, and the search would take hours
    otsu = threshold_multiotsu(images_zyx.astype(np.float32), classes=len(names), nbins=256)
    for title, thresholds in (("multi-Otsu", otsu), ("best thresholds", best_thresholds(images_zyx, masks_zyx))):
        counts_cc = confusion_counts(masks_zyx, np.digitize(images_zyx, thresholds), len(names))
        iou = iou_per_class(counts_cc)
        print(f"{title:<16}" + "".join(f"{value:>15.3f}" for value in [*iou, mean_of_present(iou)]))


def best_thresholds(
    images_zyx: npt.NDArray[np.uint16], masks_zyx: npt.NDArray[np.uint8], num_bins: int = NUM_BINS
) -> list[int]:
    """Return the thresholds with the highest mean IoU, for classes in order of grey level.

    A class's IoU depends on its own two thresholds only, so their sum is maximised class after class, by dynamic
    programming over the bins.
    """
    edges = np.linspace(0, int(images_zyx.max()) + 1, num_bins + 1)
    counts_cb = np.stack([np.histogram(images_zyx[masks_zyx == value], edges)[0] for _, value, _ in SAMPLE_CLASSES])
    below_cb = np.pad(counts_cb.cumsum(axis=1), ((0, 0), (1, 0)))
    predicted_ab = below_cb.sum(axis=0)[None, :] - below_cb.sum(axis=0)[:, None]
    best_b = np.where(np.arange(num_bins + 1) == 0, 0.0, -np.inf)  # of the classes so far, ending at edge b
    came_from: list[npt.NDArray[np.intp]] = []
    for below_b in below_cb:
        hits_ab = below_b[None, :] - below_b[:, None]
        iou_ab = np.where(hits_ab >= 0, hits_ab / (predicted_ab + below_b[-1] - hits_ab), -np.inf)
        iou_ab[np.tril_indices(num_bins + 1, -1)] = -np.inf
        total_ab = best_b[:, None] + iou_ab
        came_from.append(total_ab.argmax(axis=0))
        best_b = total_ab.max(axis=0)
    thresholds = [num_bins]
    for origin_b in reversed(came_from):
        thresholds.insert(0, int(origin_b[thresholds[0]]))
    return [round(edges[bin_]) for bin_ in thresholds[1:-1]]


if __name__ == "__main__":
    main()
