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
from stackseg.cli.project import run_dvc
from stackseg.errors import StoreError

PANEL = "Project"


def attach(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(rich_help_panel=PANEL)(new)


def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the project, new or empty.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="sandstone, nuclei, mitochondria or membranes: settings for that problem, with reasons."),
    ] = None,
) -> None:
    """Begin a project of your own: params.yaml, dvc.yaml, README.md, with git and DVC set up.

    In it every command of the documentation works: `stackseg add` brings in your files, `dvc repro` trains.
    """
    from stackseg.recipes.project import require_empty, write_project
    from stackseg.recipes.recipe import OWN, read_recipe

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
    data = "stackseg add IMAGES MASKS" if recipe is None else f"stackseg fetch {recipe}, or stackseg add IMAGES MASKS"
    next_step(f"cd {shlex.quote(str(folder))}, then {data}")
