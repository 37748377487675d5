"""Verbs that keep a project in order: relocate, prune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stackseg.cli.console import next_step, say, table
from stackseg.cli.project import checkpoints_folder, load_params, read_registry, ready_store

PANEL = "Project"


def attach(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    app.command(rich_help_panel=PANEL)(relocate)
    app.command(rich_help_panel=PANEL)(prune)


def relocate(
    old: Annotated[
        Path | None, typer.Option("--from", help="Where the project was, if the store does not know it.")
    ] = None,
) -> None:
    """Bring the paths in mlflow.db up to date after the project's folder was moved.

    MLflow records artifact paths as absolute. Verbs that write to the store notice a move and do this by themselves.
    """
    from stackseg.tracking.relocate import relocate as rewrite
    from stackseg.tracking.store import project_root

    report = rewrite(project_root(), None if old is None else str(old))
    if report.num_rows_total:
        say(report.sentence())
        table("rows rewritten", ("column", "rows"), sorted(report.num_rows.items()))
    else:
        say("every recorded path is where the project is; nothing to do")


def prune(
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this, only show what would go.")] = False,
    keep: Annotated[int, typer.Option(min=0, help="Newest versions without an alias to keep.")] = 3,
    days: Annotated[float, typer.Option(min=0, help="Checkpoints untouched for so many days are stale.")] = 7,
) -> None:
    """Remove versions without an alias, their artifacts, and stale checkpoints.

    `dvc gc` and `mlflow gc` remove what DVC's cache and MLflow's deleted runs still hold: see
    docs/how-to/clean-up.md.
    """
    from stackseg.registry.cleanup import find_prunable
    from stackseg.registry.cleanup import prune as remove
    from stackseg.tracking.uri import project_root

    params = load_params()
    if yes:
        ready_store(params)
    folder = checkpoints_folder(project_root())
    found = find_prunable(read_registry(params), folder, keep=keep, older_than_days=days)
    if not found.versions and not found.checkpoints:
        say(f"nothing to prune: no version without an alias beyond the newest {keep}, no stale checkpoint")
        return
    rows = [(f"version {one.version}", one.tags.get("mean_iou", ""), one.name) for one in found.versions]
    rows += [("checkpoint", "", str(one)) for one in found.checkpoints]
    table("removed" if yes else "would be removed", ("what", "mean IoU", "where"), rows)
    if yes:
        remove(found)
        next_step("mlflow gc, to clear what MLflow marks as deleted")
    else:
        next_step("stackseg prune --yes")
