"""Which planes train, which validate, which test."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from stackseg.params.base import Section

_RANGE = r"^[^/\s][^/]*/(\*|[0-9]+(-[0-9]+)?)$"


def _plane_range(text: str) -> str:
    if not re.fullmatch(_RANGE, text):
        raise ValueError('planes are written "specimen/7", "specimen/10-19" or "specimen/*"')
    return text


PlaneRange = Annotated[str, AfterValidator(_plane_range), WithJsonSchema({"type": "string", "pattern": _RANGE})]


class ExplicitSplit(Section):
    """Planes named one by one or as ranges: "specimen/7", "specimen/10-19", "specimen/*"."""

    validation: list[PlaneRange] = Field(default_factory=list)
    """Planes that choose the best epoch."""
    test: list[PlaneRange] = Field(default_factory=list)
    """Planes that only evaluate and promote read."""
    unused: list[PlaneRange] = Field(default_factory=list)
    """Planes left out, e.g. between the parts; all others train."""


class SplitParams(Section):
    """Section `split`."""

    method: Literal["blocks", "specimens", "groups", "random", "explicit"] = "blocks"
    """Contiguous blocks along z; whole specimens; groups of planes; random planes (independent images); by name."""
    validation: float = Field(0.15, gt=0, lt=1)
    """Share of the annotated planes that chooses the best epoch."""
    test: float = Field(0.15, gt=0, lt=1)
    """Share of the annotated planes that only evaluate and promote read."""
    gap: int = Field(2, ge=0)
    """Planes left out between blocks, counted in slices of the stack (blocks only)."""
    group_size: int | None = Field(None, ge=1)
    """Pages per group (groups only); null reads data/groups.csv (specimen,plane,group)."""
    folds: int = Field(5, ge=2)
    """Into how many folds the planes outside the test part are cut."""
    fold: int | None = Field(None, ge=0)
    """Which fold validates; null uses the share `validation` instead."""
    explicit: ExplicitSplit = ExplicitSplit()
    """Planes by name (explicit only)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"fold is {self.fold}, but folds 0..{self.folds - 1} exist")
        if self.validation + self.test >= 1:
            raise ValueError("validation + test leave nothing to train on")
        named = bool(self.explicit.validation or self.explicit.test or self.explicit.unused)
        if named and self.method != "explicit":
            raise ValueError("split.explicit names planes, but split.method is not explicit")
        if self.method == "explicit" and not named:
            raise ValueError("split.method is explicit, but split.explicit names no plane")
        return self
