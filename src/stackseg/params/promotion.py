"""What a challenger must show before it becomes the champion."""

from __future__ import annotations

from pydantic import Field

from stackseg.params.base import Section


class PromotionParams(Section):
    """Section `promotion`."""

    min_gain: float = Field(0.0, ge=-1, le=1)
    """Mean IoU by which a challenger must exceed the champion, with the confidence below."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Confidence that the gain is above `min_gain`."""
    max_class_drop: float = Field(0.02, ge=0, le=1)
    """IoU that no class may lose against the champion."""
    floor_mean_iou: float = Field(0.5, ge=0, le=1)
    """Least mean IoU of any champion, the first one included."""
    floor_class_iou: float = Field(0.0, ge=0, le=1)
    """Least IoU of every class of any champion."""
    max_ms_per_megapixel: float | None = Field(None, gt=0)
    """Slowest inference that is accepted, on the machine that promotes; null for any."""
    max_megabytes: float | None = Field(None, gt=0)
    """Largest bundle that is accepted; null for any."""
