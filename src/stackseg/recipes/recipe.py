"""Recipes: the settings that suit a known problem, each with its reason."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict
from ruamel.yaml import YAML

from stackseg.errors import ParamsError

NAMES = ("sandstone", "nuclei", "mitochondria", "membranes")
FOLDER = files("stackseg.recipes")


class Original(BaseModel):
    """How the project that a recipe follows trained: in words, and as dotted keys of params.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str
    params: dict[str, Any]


class Recipe(BaseModel):
    """A known problem; `params` holds the sections of params.yaml in which it differs from the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    about: str
    data: str
    """Where its data are published."""
    licence: str
    params: dict[str, dict[str, Any]] = {}
    reasons: list[str] = []
    original: Original | None = None


OWN = Recipe(
    title="A segmentation project",
    about="From a stack and its masks to a model that answers over HTTP.",
    data="your own",
    licence="yours",
)
"""The project of somebody who brings their own problem."""


def read_recipe(name: str) -> Recipe:
    """Return a recipe by its name.

    Raises
    ------
    ParamsError
        There is none of that name.
    """
    if name not in NAMES:
        raise ParamsError(f"no recipe {name!r}", expected=f"one of {', '.join(NAMES)}", where="--recipe")
    text = FOLDER.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return Recipe.model_validate(YAML(typ="safe").load(text))
