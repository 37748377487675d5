"""How raw intensities become network inputs."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from stackseg.params.base import Section


class IntensityParams(Section):
    """Section `intensity`: clip at percentiles, then subtract the mean and divide by the standard deviation."""

    scope: Literal["dataset", "specimen", "plane"] = "dataset"
    """Whose statistics: of all training planes together, of each stack, or of each plane (exposures differ)."""
    low_percentile: float = Field(0.1, ge=0, lt=50)
    """Values below this percentile are clipped to it."""
    high_percentile: float = Field(99.9, gt=50, le=100)
    """Values above this percentile are clipped to it."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low_percentile >= self.high_percentile:
            raise ValueError("low_percentile must lie below high_percentile")
        return self
