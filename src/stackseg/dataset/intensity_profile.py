"""Intensity profile of the training planes, and by how much another image lies outside of it (drift)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from stackseg.dataset.files.axes import VoxelSize
from stackseg.dataset.normalisation import exact_type

SAMPLED_PIXELS = 2**16
"""Pixels of a plane that its percentiles rest on; a request waits for them."""
INTENSITY_MARGIN = 0.15
"""Share of the training part's contrast by which an intensity may leave its range."""
NOISE_FACTOR = 1.5
"""Factor by which noise may leave its range."""
VOXEL_TOLERANCE = 0.1
"""Relative difference of voxel size from which on features have another size in pixels."""

Figure = Literal["low", "median", "high", "noise"]
Range = tuple[float, float]


class PlaneFigures(BaseModel):
    """One channel of one plane in raw intensity: percentiles 1, 50 and 99, and the noise's standard deviation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    median: float
    high: float
    noise: float


class ChannelRanges(BaseModel):
    """Smallest and largest figure of one channel among the training planes, in raw intensity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: Range
    median: Range
    high: Range
    noise: Range


class IntensityProfile(BaseModel):
    """Ranges of the training planes' intensities and noise, channel by channel; travels with the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: tuple[ChannelRanges, ...]
    num_planes: int


class Drift(BaseModel):
    """One figure of an image that lies outside the training part's range."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    figure: str
    found: float
    training_low: float
    training_high: float


def plane_figures(image_yxc: npt.NDArray[np.generic]) -> tuple[PlaneFigures, ...]:
    """Return the figures of each channel of a plane (Y, X, C).

    Noise is the standard deviation of J. Immerkær (1996), "Fast noise variance estimation", CVIU 64:300: second
    differences along both axes, blind to ramps and to edges along an axis; here with the median in place of the mean,
    so that texture counts little, too.
    """
    return tuple(_channel_figures(image_yxc[:, :, channel]) for channel in range(image_yxc.shape[2]))


def intensity_profile(planes: Sequence[tuple[PlaneFigures, ...]]) -> IntensityProfile:
    """Return the ranges over the figures of planes, which all have the same number of channels."""
    channels = [
        ChannelRanges.model_validate({name: _range([getattr(one, name) for one in same]) for name in _FIGURES})
        for same in zip(*planes, strict=True)
    ]
    return IntensityProfile(channels=tuple(channels), num_planes=len(planes))


def intensity_drift(profile: IntensityProfile, figures: tuple[PlaneFigures, ...]) -> list[Drift]:
    """Return the figures of a plane that lie outside the training part's ranges by more than the margins."""
    found = []
    for channel, (ranges, one) in enumerate(zip(profile.channels, figures, strict=True)):
        margin = INTENSITY_MARGIN * (ranges.high[1] - ranges.low[0])
        for name in _FIGURES:
            low, high = getattr(ranges, name)
            least, most = (
                (low / NOISE_FACTOR, high * NOISE_FACTOR) if name == "noise" else (low - margin, high + margin)
            )
            value = getattr(one, name)
            if not least <= value <= most:
                label = f"{name} of channel {channel}" if len(profile.channels) > 1 else name
                found.append(Drift(figure=label, found=value, training_low=low, training_high=high))
    return found


def voxel_factor(found: VoxelSize | None, training: VoxelSize | None) -> float | None:
    """Return the largest factor, 1 or more, between two voxel sizes along any axis that both know, or None."""
    if found is None or training is None:
        return None
    pairs = [(a, b) for a, b in zip(found, training, strict=True) if a is not None and b is not None]
    return max((max(a / b, b / a) for a, b in pairs), default=None)


_FIGURES: tuple[Figure, ...] = ("low", "median", "high", "noise")


def _range(values: list[float]) -> Range:
    return min(values), max(values)


def _channel_figures(image_yx: npt.NDArray[np.generic]) -> PlaneFigures:
    # an odd stride, so that it does not stay in the same columns of an even width
    sampled = np.arange(0, image_yx.size, max(1, image_yx.size // SAMPLED_PIXELS) | 1)
    rows, columns = np.unravel_index(sampled, image_yx.shape)
    exact = exact_type(image_yx.dtype)
    low, median, high = np.percentile(image_yx[rows, columns].astype(np.float64), [1, 50, 99]).tolist()

    def beside(dy: int, dx: int) -> npt.NDArray[np.floating]:
        last_y, last_x = image_yx.shape[0] - 1, image_yx.shape[1] - 1
        return image_yx[np.clip(rows + dy, 0, last_y), np.clip(columns + dx, 0, last_x)].astype(exact)

    left, middle, right = (beside(-1, dx) - 2 * beside(0, dx) + beside(1, dx) for dx in (-1, 0, 1))
    # these differences multiply the standard deviation of white noise by 6; 0.6745 is the normal's quartile
    noise = float(np.median(np.abs(left - 2 * middle + right))) / (6 * 0.6745)
    return PlaneFigures(low=low, median=median, high=high, noise=noise)
