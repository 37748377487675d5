"""How training patches are varied."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from stackseg.params.base import Section


class AugmentParams(Section):
    """Section `augment`."""

    preset: Literal["none", "light", "em", "micrograph", "file"] = "light"
    """none; light: flips, turns, tone; em: elastic too; micrograph: affine, blur and noise too; file: your own."""
    file: str | None = None
    """A pipeline saved by albumentations (JSON or YAML), for preset file; name it in dvc.yaml's deps of train."""

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if (self.preset == "file") != (self.file is not None):
            raise ValueError('preset "file" and a file name go together')
        return self
