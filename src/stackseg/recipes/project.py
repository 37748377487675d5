"""Write the files of a project of one's own."""

from __future__ import annotations

from pathlib import Path

from stackseg.errors import DataError
from stackseg.params.file import read_params, read_tree, write_tree
from stackseg.recipes.recipe import FOLDER, Recipe

TEMPLATE = FOLDER / "template"


def require_empty(folder: Path) -> None:
    """Raise DataError where a project would be mixed with files that are there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            "it is there already and not empty" if folder.is_dir() else "a file of that name is there",
            expected="a new or an empty folder",
            where=str(folder),
            remedy="name another folder",
        )


def write_project(folder: Path, recipe: Recipe, version: str) -> None:
    """Write params.yaml, dvc.yaml, requirements.txt, README.md and .gitignore into a folder.

    Parameters
    ----------
    folder
        Must exist; files of these names are replaced.
    recipe
        Its settings go into params.yaml, comments and all other settings stay those of the template.
    version
        The line of requirements.txt that names stackseg: the stages depend on it.
    """
    # under its own name DVC would take the template for stages of the repository that it lies in
    for name, target in (("params.yaml", "params.yaml"), ("stages.yaml", "dvc.yaml"), ("gitignore", ".gitignore")):
        (folder / target).write_text(TEMPLATE.joinpath(name).read_text(encoding="utf-8"), encoding="utf-8")
    path = folder / "params.yaml"
    tree = read_tree(path)
    for section, values in recipe.params.items():
        tree[section].update(values)
    write_tree(path, tree)
    params = read_params(path)
    (folder / "requirements.txt").write_text(f"{version}\n", encoding="utf-8")
    reasons = "".join(f"\n- {one}" for one in recipe.reasons)
    origin = "" if recipe.original is None else f"\nThe project that it follows: {recipe.original.about}.\n"
    readme = TEMPLATE.joinpath("README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(
        readme.format(
            **recipe.model_dump(include={"title", "about", "data", "licence"}),
            model=params.project.model_name,
            reasons=f"\n## Why these settings\n{reasons}\n{origin}" if reasons else "",
        ).rstrip()
        + "\n",
        encoding="utf-8",
    )
