"""Begin a project."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from stackseg import __version__
from stackseg.cli.console import next_step, say
from stackseg.cli.data import add
from stackseg.cli.project import run_dvc
from stackseg.errors import DataError, ParamsError, StoreError

PANEL = "Project"


def attach(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(rich_help_panel=PANEL)(new)


def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the project, new or empty.")],
    images: Annotated[Path | None, typer.Argument(help="Your images, as `stackseg add` takes them.")] = None,
    masks: Annotated[Path | None, typer.Argument(help="Their masks.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="sandstone, nuclei, mitochondria or membranes: settings for that problem, with reasons."),
    ] = None,
) -> None:
    """Begin a project of your own: params.yaml, dvc.yaml, README.md, with git and DVC set up.

    In it every command of the documentation works: `stackseg add` brings in your files and proposes settings for them,
    `dvc repro` trains. IMAGES and MASKS are added at once, where they are given.
    """
    from stackseg.recipes.project import require_empty, write_project
    from stackseg.recipes.recipe import OWN, read_recipe

    if images is not None and masks is None:
        raise ParamsError("images without masks", expected="both, or neither", where="MASKS")
    for one in (images, masks):
        if one is not None and not one.exists():
            raise DataError("no such file or folder", where=str(one), remedy="check the path")
    pair = None if images is None or masks is None else (images.resolve(), masks.resolve())
    chosen = OWN if recipe is None else read_recipe(recipe)
    require_empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_project(folder, chosen, f"stackseg=={__version__}")
    done = subprocess.run(["git", "init", "-q", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise StoreError(f"`git init` failed: {done.stderr.strip()}", remedy="mend this, then try again elsewhere")
    os.chdir(folder)
    run_dvc("init", "-q", remedy="mend this, then type `dvc init` there")
    say(f"{folder}: {chosen.title}")
    if recipe is not None:
        say(f"its data: {chosen.data} ({chosen.licence})")
    if pair:
        add(*pair)
        say(f"these are in {folder}: go there first")
        return
    data = "stackseg add IMAGES MASKS" if recipe is None else f"stackseg fetch {recipe}, or stackseg add IMAGES MASKS"
    next_step(f"cd {shlex.quote(str(folder))}, then {data}")
