"""What a study tries, and how it chooses and stops trials."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, WithJsonSchema, field_validator, model_validator

from stackseg.params.base import Section

SamplerName = Literal["tpe", "gp", "cmaes", "nsgaii", "nsgaiii", "random", "qmc", "grid", "brute_force"]
PrunerName = Literal["none", "successive_halving", "hyperband", "median", "percentile", "threshold"]
ObjectiveName = Literal["mean_iou", "ms_per_megapixel", "parameters"]


_STUDY = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


def _study(text: str) -> str:
    if not re.fullmatch(_STUDY, text) or len(text) > 100:
        raise ValueError(
            "a name begins with a letter A-Z or a digit, goes on with those, dots, _ and -, and has at most 100 "
            "characters: it is also the name of a folder"
        )
    return text


class SpaceEntry(Section):
    """What one dotted key may be: a list of choices, or a range."""

    choices: list[JsonValue] | None = Field(None, min_length=1)
    """Values to choose from."""
    low: int | float | None = None
    """Lower end of a range, included."""
    high: int | float | None = None
    """Upper end of a range, included."""
    log: bool = False
    """Draw the logarithm evenly."""
    step: int | float | None = Field(None, gt=0)
    """Distance of neighbouring values of a range."""
    when: dict[str, Annotated[list[JsonValue], Field(min_length=1)]] = Field(default_factory=dict)
    """Dotted key to values: the entry counts only while that key has one of them, else params.yaml's value holds."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        bounds = (self.low, self.high)
        if self.choices is not None and (bounds != (None, None) or self.log or self.step is not None):
            raise ValueError("choices go without low, high, log and step")
        if self.choices is None and None in bounds:
            raise ValueError("it needs choices, or low and high")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and self.low is not None and self.low <= 0:
            raise ValueError(f"low {self.low} has no logarithm")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")
        return self


class SamplerParams(Section):
    """Section `search.sampler`."""

    name: SamplerName = "tpe"
    """tpe, gp, cmaes, nsgaii, nsgaiii, random, qmc, grid or brute_force, of Optuna."""
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Arguments of Optuna's class, e.g. `n_startup_trials: 20`; the seed is params.yaml's unless given here."""


class PrunerParams(Section):
    """Section `search.pruner`."""

    name: PrunerName = "successive_halving"
    """successive_halving, hyperband, median, percentile or threshold, of Optuna; none prunes nothing."""
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Arguments of Optuna's class, in epochs where it says steps, e.g. `min_resource: 4`."""


class SearchParams(Section):
    """Section `search`."""

    study: Annotated[
        str, AfterValidator(_study), WithJsonSchema({"type": "string", "pattern": _STUDY, "maxLength": 100})
    ] = "search"
    """Name of the study; --study overrides it."""
    space: dict[str, SpaceEntry] = Field(default_factory=dict)
    """Dotted key of model, augment, train or inference to its values: a list, or low and high with log or step."""
    objectives: list[ObjectiveName] = Field(["mean_iou"], min_length=1, max_length=3)
    """mean_iou on the validation planes (higher is better); also ms_per_megapixel and parameters (lower is better)."""
    folds: int | None = Field(None, ge=2)
    """Score a trial on this many folds, in order; null scores it on the validation part."""
    fold_margin: float = Field(0.02, ge=0, le=1)
    """With folds: end a trial when its mean IoU so far trails the best trial's on the same folds by more than this."""
    sampler: SamplerParams = SamplerParams()
    pruner: PrunerParams = PrunerParams()
    heartbeat: int = Field(15, ge=1)
    """Seconds between a worker's signs of life; after four without one, its trial is taken up by another."""

    @field_validator("space", mode="before")
    @classmethod
    def _lists_are_choices(cls, space: Any) -> Any:
        if not isinstance(space, dict):
            return space
        return {key: {"choices": one} if isinstance(one, list) else one for key, one in space.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if "mean_iou" not in self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise ValueError("objectives name mean_iou, and each at most once")
        if len(self.objectives) > 1 and self.pruner.name != "none":
            raise ValueError("several objectives cannot be pruned: set search.pruner.name to none")
        if len(self.objectives) > 1 and self.sampler.name == "cmaes":
            raise ValueError("cmaes knows one objective: choose tpe, gp or nsgaii")
        return self
