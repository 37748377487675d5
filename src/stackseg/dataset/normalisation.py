"""Fit intensity statistics on the training part; apply them anywhere."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from stackseg.dataset.channels import ColourPolicy, PlaneSource, apply_colour
from stackseg.errors import DataError
from stackseg.params.intensity import IntensityParams

# percentiles of a strided sample of this many pixels are within 0.05 % rank of all pixels'
SAMPLED_PIXELS = 2**21
# planes read of a whole stack when it is its own reference
SAMPLED_PLANES = 32


class ChannelStatistics(BaseModel):
    """What one channel is clipped to and standardised by, in raw intensity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    mean: float
    std: float

    @property
    def constant(self) -> bool:
        """Whether the channel has no contrast at all."""
        return self.std == 0


def fit_statistics(
    planes: Iterable[npt.NDArray[np.generic]], num_planes: int, params: IntensityParams
) -> tuple[ChannelStatistics, ...]:
    """Fit clip limits, mean and standard deviation per channel.

    Parameters
    ----------
    planes
        Planes (Y, X, C) with equal C; read once.
    num_planes
        How many they are: it sets how densely each is sampled.
    params
        Percentiles.

    Returns
    -------
    tuple of ChannelStatistics
        One per channel, in raw intensity; mean and standard deviation of the clipped values.

    Raises
    ------
    DataError
        The values are so large that there is no standard deviation of them.
    """
    per_plane = max(1, SAMPLED_PIXELS // max(1, num_planes))
    samples: list[npt.NDArray[np.float64]] = []
    for image_yxc in planes:
        pixels_nc = image_yxc.reshape(-1, image_yxc.shape[2])
        stride = max(1, len(pixels_nc) // per_plane)
        # an odd stride, so that it does not stay in the same columns of an even width
        samples.append(pixels_nc[:: stride | 1].astype(np.float64))
    values_nc = np.concatenate(samples)
    low_c, high_c = np.percentile(values_nc, [params.low_percentile, params.high_percentile], axis=0)
    clipped_nc = np.clip(values_nc, low_c, high_c)
    with np.errstate(over="ignore", invalid="ignore"):
        mean_c, std_c = clipped_nc.mean(0), clipped_nc.std(0)
    if not np.isfinite([mean_c, std_c]).all():
        raise DataError(
            f"intensities from {low_c.min():.3g} to {high_c.max():.3g}",
            expected="values whose mean and standard deviation are numbers",
            remedy="rescale the images",
        )
    return tuple(
        ChannelStatistics(low=float(low), high=float(high), mean=float(mean), std=float(std))
        for low, high, mean, std in zip(low_c, high_c, mean_c, std_c, strict=True)
    )


def standardise(
    image_yxc: npt.NDArray[np.generic], statistics: tuple[ChannelStatistics, ...]
) -> npt.NDArray[np.float32]:
    """Clip and standardise a plane (Y, X, C); a channel without contrast becomes zero."""
    table = np.array([(one.low, one.high, one.mean, one.std or 1.0) for one in statistics], exact_type(image_yxc.dtype))
    low_c, high_c, mean_c, scale_c = table.T
    standard_yxc = (np.clip(image_yxc.astype(table.dtype), low_c, high_c) - mean_c) / scale_c
    result: npt.NDArray[np.float32] = standard_yxc.astype(np.float32, copy=False)
    return result


def exact_type(dtype: np.dtype[np.generic]) -> type[np.float32] | type[np.float64]:
    """Return the smaller type in which intensities lose nothing before an offset is taken off them.

    float32 holds integers of 16 bits; of large ones, or of float64 near a large offset, it keeps few levels.
    """
    return np.float32 if np.can_cast(dtype, np.float32) else np.float64


class IntensityPolicy(BaseModel):
    """How raw planes become network inputs; travels with the model.

    `statistics` is fitted on the training part for scope ``dataset`` and None otherwise, where each stack or
    each plane is its own reference: then the same image gives the same input wherever it is segmented.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    params: IntensityParams
    colour: ColourPolicy
    statistics: tuple[ChannelStatistics, ...] | None

    def reference(self, source: PlaneSource) -> tuple[ChannelStatistics, ...] | None:
        """Return the statistics for all planes of a source, or None where each plane is its own reference."""
        if self.params.scope == "plane":
            return None
        if self.params.scope == "dataset":
            return self.statistics
        step = -(-len(source) // SAMPLED_PLANES)
        chosen = range(0, len(source), step)
        planes = (apply_colour(source.plane(z), self.colour, f"plane {z}") for z in chosen)
        return fit_statistics(planes, len(chosen), self.params)

    def plane_reference(self, image_yxc: npt.NDArray[np.generic]) -> tuple[ChannelStatistics, ...]:
        """Return a plane's own statistics."""
        return fit_statistics([image_yxc], 1, self.params)

    def apply(
        self, image_yxc: npt.NDArray[np.generic], reference: tuple[ChannelStatistics, ...] | None, where: str
    ) -> npt.NDArray[np.float32]:
        """Return a plane (Y, X, C) as network input, float32 of the same shape.

        Raises
        ------
        DataError
            The plane has other channels than the statistics.
        """
        coloured = apply_colour(image_yxc, self.colour, where)
        statistics = reference if reference is not None else self.plane_reference(coloured)
        if len(statistics) != coloured.shape[2]:
            raise DataError(
                f"{coloured.shape[2]} channels",
                expected=f"{len(statistics)}, as in training",
                where=where,
                remedy="convert the image, or train with data.colour: grey or rgb",
            )
        return standardise(coloured, statistics)
