"""How a plane of any size is segmented; travels with the model."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from stackseg.params.base import Section

Tta = Literal["none", "flips", "d4"]
Runtime = Literal["torch", "onnxruntime", "openvino"]
"""What computes the network. The others than torch are for the CPU."""


class InferenceParams(Section):
    """Section `inference`."""

    tile: int = Field(1024, ge=32)
    """Largest side of a window in pixels, a multiple of 32. Planes up to it are segmented whole."""
    overlap: int = Field(64, ge=0)
    """Pixels that neighbouring windows share; they are blended there."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the hardware has it, else fp32."""
    tta: Tta = "none"
    """Test-time augmentation: average over the four flips, or over all eight turns and flips (d4). Scores include it;
    it costs four or eight times as long."""

    orthogonal: bool = False
    """Average over xy, xz and yz sections of stacks whose voxels have equal sides; about three times as long."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.tile % 32:
            raise ValueError(f"tile is {self.tile}, not a multiple of 32")
        if self.overlap > min(self.tile // 2, self.tile - 32):
            raise ValueError(f"overlap is {self.overlap}, more than half the tile, or less than 32 below it")
        return self
