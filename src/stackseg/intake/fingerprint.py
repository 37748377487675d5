"""What a data set is like: the figures from which settings are proposed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stackseg.dataset.channels import ColourPolicy, apply_colour
from stackseg.dataset.labels.table import LabelTable
from stackseg.dataset.leakage import reduce_plane
from stackseg.dataset.specimens import Specimen

MEASURED_PLANES = 48
"""Annotated planes that are read for it, in runs of neighbours spread over the stack."""
RUN = 6


@dataclass(frozen=True)
class Fingerprint:
    """What was measured of annotated planes.

    Parameters
    ----------
    shapes_yx
        Shape of each annotated plane.
    spacing
        Median distance between neighbouring annotated planes, in planes of the stack.
    exposure
        By how much the grey value of one class varies from plane to plane: standard deviation of its mean over planes
        as a share of the standard deviation of all pixels, mean over classes and channels. None for one plane.
    likeness
        Distance in planes to how much alike planes so far apart are: correlation of their details, less that of planes
        far apart, as a share of what is left to 1. 1 for copies, 0 for strangers.
    """

    shapes_yx: tuple[tuple[int, int], ...]
    spacing: int
    exposure: float | None
    likeness: Mapping[int, float]

    @property
    def one_size(self) -> bool:
        """Whether all planes have one shape."""
        return len(set(self.shapes_yx)) == 1

    @property
    def megapixels(self) -> float:
        """Annotated pixels in millions."""
        return sum(height * width for height, width in self.shapes_yx) / 1e6


def measure(
    specimen: Specimen,
    table: LabelTable,
    colour: ColourPolicy,
    progress: Callable[[int, int], None] = lambda done, all_: None,
) -> Fingerprint:
    """Measure a specimen with its class table; reads at most `MEASURED_PLANES` of its annotated planes."""
    labelled = specimen.annotated(table)
    chosen = chosen_planes(labelled)
    details: dict[int, npt.NDArray[np.float32]] = {}
    moments = np.zeros((len(chosen), len(table.names), 3))
    for row, z in enumerate(chosen):
        image_yxc = apply_colour(specimen.plane(z), colour, specimen.where(z)).astype(np.float64)
        labels_yx = specimen.labels(z, table)
        details[z] = reduce_plane(image_yxc)
        _add_moments(moments[row], image_yxc.mean(2), labels_yx)
        progress(row + 1, len(chosen))
    spacing = int(np.median(np.diff(labelled))) if len(labelled) > 1 else 1
    return Fingerprint(
        shapes_yx=tuple(specimen.shape_yx(z) for z in labelled),
        spacing=spacing,
        exposure=_exposure(moments),
        likeness=_likeness(details),
    )


def chosen_planes(labelled: Sequence[int]) -> list[int]:
    """Return the planes that are measured: all, or runs of neighbours spread evenly over the annotated ones."""
    if len(labelled) <= MEASURED_PLANES:
        return list(labelled)
    starts = np.linspace(0, len(labelled) - RUN, MEASURED_PLANES // RUN).round().astype(int)
    return [labelled[place] for place in sorted({start + step for start in starts.tolist() for step in range(RUN)})]


def _add_moments(
    sums_c3: npt.NDArray[np.float64], image_yx: npt.NDArray[np.float64], labels_yx: npt.NDArray[np.uint8]
) -> None:
    """Add number, sum and sum of squares of the pixels of each class."""
    for index in range(len(sums_c3)):
        values = image_yx[labels_yx == index]
        sums_c3[index] += len(values), values.sum(), np.square(values).sum()


def _exposure(moments_pc3: npt.NDArray[np.float64]) -> float | None:
    number, total, squares = moments_pc3.sum((0, 1))
    if len(moments_pc3) < 2 or not number:
        return None
    contrast = np.sqrt(max(0.0, squares / number - (total / number) ** 2))
    spreads = []
    for planes_p3 in moments_pc3.transpose(1, 0, 2):
        # of fewer pixels the mean is no figure of the exposure
        held_p3 = planes_p3[planes_p3[:, 0] >= 100]
        if len(held_p3) > 1:
            spreads.append(float((held_p3[:, 1] / held_p3[:, 0]).std()))
    return float(np.mean(spreads)) / contrast if spreads and contrast > 0 else None


def _likeness(details: Mapping[int, npt.NDArray[np.float32]]) -> dict[int, float]:
    pairs: dict[int, list[float]] = {}
    ordered = sorted(details)
    for place, z in enumerate(ordered):
        for other in ordered[place + 1 :]:
            if details[z].shape == details[other].shape:
                pairs.setdefault(other - z, []).append(float(details[z] @ details[other]))
    if not pairs:
        return {}
    # planes far apart: the farther third of all distances
    reach = max(pairs) * 2 / 3
    far = float(np.median([one for lag, held in pairs.items() if lag >= reach for one in held]))
    return {lag: (float(np.mean(held)) - far) / max(1e-6, 1 - far) for lag, held in sorted(pairs.items())}
