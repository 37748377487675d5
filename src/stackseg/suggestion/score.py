"""How unsure a model is of whole planes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stackseg.dataset.channels import PlaneSource
from stackseg.model.bundle import Segmenter
from stackseg.model.segment import SegmentedPlane, segment
from stackseg.model.uncertainty import entropy
from stackseg.params.inference import Tta


@dataclass(frozen=True)
class PlaneScore:
    """Entropy of a plane's pixels by predicted class, 0 to 1 (None: the class is absent), and the classes' shares."""

    entropy_of_class: tuple[float | None, ...]
    shares: tuple[float, ...]

    @property
    def uncertainty(self) -> float:
        """Class-stratified entropy: the mean over the classes present, so that a rare one counts as a frequent one."""
        present = [one for one in self.entropy_of_class if one is not None]
        return sum(present) / len(present)


def score_plane(plane: SegmentedPlane, num_classes: int) -> tuple[PlaneScore, npt.NDArray[np.float32]]:
    """Return the score of a plane segmented with its probabilities, and the entropy (Y, X) of its pixels."""
    if plane.probabilities_cyx is None:
        raise ValueError("segment() was not asked for probabilities")
    entropy_yx = entropy(plane.probabilities_cyx)
    pixels_c = np.bincount(plane.mask_yx.ravel(), minlength=num_classes)
    sums_c = np.bincount(plane.mask_yx.ravel(), entropy_yx.ravel().astype(np.float64), minlength=num_classes)
    means = tuple(float(total / n) if n else None for total, n in zip(sums_c, pixels_c, strict=True))
    return PlaneScore(means, tuple((pixels_c / pixels_c.sum()).tolist())), entropy_yx


def score_planes(
    source: PlaneSource, segmenter: Segmenter, planes: Sequence[int], tta: Tta | None
) -> Iterator[tuple[int, PlaneScore]]:
    """Yield number and score of some planes of a stack, one after another."""
    for plane in segment(source, segmenter, planes=planes, probabilities=True, tta=tta):
        yield plane.z, score_plane(plane, len(segmenter.inference.classes))[0]


def foreground(scores: Sequence[PlaneScore]) -> list[float]:
    """Return of each plane the share of pixels of all classes but the one that is most frequent over all planes."""
    background = int(np.sum([one.shares for one in scores], axis=0).argmax())
    return [1 - one.shares[background] for one in scores]
