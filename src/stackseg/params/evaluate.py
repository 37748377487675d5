"""How a trained model is scored."""

from __future__ import annotations

from pydantic import Field

from stackseg.params.base import Section


class EvaluateParams(Section):
    """Section `evaluate`."""

    boundary_tolerance: int = Field(2, ge=1)
    """Pixels by which a boundary may be off and still count as found."""
    block_planes: int = Field(8, ge=1)
    """Neighbouring planes of a stack that the bootstrap draws together, as they are not independent."""
    bootstrap_samples: int = Field(2000, ge=100)
    """Resamples of the interval."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Confidence of the interval."""
    membrane_class: str | None = None
    """Class whose thinned outline separates cells: gives V_rand and V_info for binary EM; null for none."""
    overlays: int = Field(4, ge=1, le=50)
    """Worst and median planes drawn as input, truth, prediction and error."""
