"""How far an image is from what a model was trained on: intensities, noise, voxel size."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict

from stackseg.dataset.channels import PlaneSource, apply_colour
from stackseg.dataset.files.axes import VoxelSize
from stackseg.dataset.intensity_profile import (
    VOXEL_TOLERANCE,
    Drift,
    PlaneFigures,
    intensity_drift,
    plane_figures,
    voxel_factor,
)
from stackseg.errors import DataError
from stackseg.model.bundle import BundleSpec

MAX_PLANES = 8
MAX_VOXEL_FACTOR = 2.0


class DriftReport(BaseModel):
    """What of an image lies outside the training part's range; `voxel_factor` is None where a voxel size is unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outside: bool
    figures: tuple[Drift, ...]
    voxel_factor: float | None
    voxel_size_zyx_um: VoxelSize | None
    training_voxel_size_zyx_um: VoxelSize | None

    def sentences(self) -> list[str]:
        """Return it in words, one per figure outside; empty if there is none."""
        found = [
            f"{one.figure}{'' if one.figure.startswith('noise') else ' intensity'} is {one.found:.4g}, in training "
            f"{one.training_low:.4g} to {one.training_high:.4g}"
            for one in self.figures
        ]
        if self.voxel_factor is not None and self.voxel_factor > 1 + VOXEL_TOLERANCE:
            found.append(
                f"voxel size {_shown(self.voxel_size_zyx_um)} differs from training's "
                f"{_shown(self.training_voxel_size_zyx_um)} by a factor of {self.voxel_factor:.2f}"
            )
        return found


def measure_drift(source: PlaneSource, voxel_size_zyx_um: VoxelSize | None, spec: BundleSpec) -> DriftReport:
    """Compare an image with the training part.

    Parameters
    ----------
    source
        Planes (Y, X, C) in raw intensity; of a stack, up to `MAX_PLANES` evenly spread ones are looked at, and the
        median of each figure counts.
    voxel_size_zyx_um
        Of the image, as its file says.
    spec
        The model's.
    """
    num = min(len(source), MAX_PLANES)
    chosen = np.unique(np.linspace(0, len(source) - 1, num).round().astype(int)).tolist()
    colour = spec.inference.intensity.colour
    planes = [plane_figures(apply_colour(source.plane(z), colour, f"plane {z}")) for z in chosen]
    if len(planes[0]) != spec.inference.num_channels:
        raise DataError(
            f"{len(planes[0])} channels",
            expected=f"{spec.inference.num_channels}, as in training",
            remedy="convert the image, or train with data.colour: grey or rgb",
        )
    typical = tuple(_median(same) for same in zip(*planes, strict=True))
    figures = tuple(intensity_drift(spec.profile, typical))
    training = spec.inference.voxel_size_zyx_um
    factor = voxel_factor(voxel_size_zyx_um, training)
    return DriftReport(
        outside=bool(figures) or (factor is not None and factor > 1 + VOXEL_TOLERANCE),
        figures=figures,
        voxel_factor=None if factor is None else round(factor, 4),
        voxel_size_zyx_um=voxel_size_zyx_um,
        training_voxel_size_zyx_um=training,
    )


def require_voxel_size(report: DriftReport, *, where: str, remedy: str) -> None:
    """Raise DataError if the voxel size is off by more than a factor of two: features then have another size in pixels.

    Parameters
    ----------
    where
        The file, for the message.
    remedy
        How to go on nevertheless.
    """
    if report.voxel_factor is not None and report.voxel_factor > MAX_VOXEL_FACTOR:
        raise DataError(
            f"voxel size {_shown(report.voxel_size_zyx_um)}",
            expected=f"that of training, {_shown(report.training_voxel_size_zyx_um)}, within a factor of 2",
            where=where,
            remedy=f"rescale the image; {remedy}",
        )


def _median(figures: tuple[PlaneFigures, ...]) -> PlaneFigures:
    names = PlaneFigures.model_fields
    return PlaneFigures.model_validate(
        {name: float(np.median([getattr(one, name) for one in figures])) for name in names}
    )


def _shown(size: VoxelSize | None) -> str:
    if size is None:
        return "unknown"
    return " × ".join("?" if one is None else f"{one:g}" for one in size) + " µm (z, y, x)"
