"""Recipes: settings that params.yaml takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from stackseg.params.file import read_params, write_values
from stackseg.recipes.project import write_project
from stackseg.recipes.recipe import NAMES, read_recipe


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_and_its_original_are_settings(name: str, tmp_path: Path) -> None:
    recipe = read_recipe(name)
    write_project(tmp_path, recipe, "stackseg==0")
    own = read_params(tmp_path / "params.yaml")
    assert own.project.model_name == name
    assert recipe.original is not None
    write_values(tmp_path / "params.yaml", recipe.original.params)
    original = read_params(tmp_path / "params.yaml")
    # what may differ is how it is trained, not what is scored
    for section in ("project", "data", "split", "evaluate", "promotion"):
        assert getattr(original, section) == getattr(own, section)
    assert (original.train, original.model) != (own.train, own.model)
