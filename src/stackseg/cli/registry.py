"""Verbs on the registry: register."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stackseg.cli.console import next_step, say, warn
from stackseg.cli.project import OUTPUTS, load_params
from stackseg.cli.store import ready_store

if TYPE_CHECKING:
    from stackseg.params import Params

PANEL = "Models"


def attach(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    app.command(rich_help_panel=PANEL)(register)


def register(
    data: Annotated[Path, typer.Option(help="Folder of the specimens.")] = Path("data"),
    out: Annotated[Path, typer.Option(help="Folder of the stages' outputs.")] = OUTPUTS,
) -> None:
    """Register the model in outputs/ with its scores, if it is not registered yet.

    `dvc repro` does it by itself; after a clone and `dvc pull`, this brings the same version into a new registry.
    """
    register_outputs(load_params(), data=data, out=out)


def register_outputs(params: Params, *, data: Path, out: Path) -> None:
    """Register what the stages wrote into `out`, and say what came of it."""
    from stackseg.imaging.catalog import read_catalog
    from stackseg.learning.bundle import load_bundle
    from stackseg.learning.reports import read_evaluation
    from stackseg.lifecycle.lineage import git_state
    from stackseg.lifecycle.registry import register as register_version
    from stackseg.lifecycle.runs import read_run
    from stackseg.serving.packaging import log_bundle

    catalog = read_catalog(out / "catalog.json")
    evaluation = read_evaluation(out / "evaluation.json")
    record = read_run(out / "run.json")
    # loading verifies the digest before anything is registered under it
    bundle = load_bundle(out / "model")
    spec = bundle.spec
    if spec is None:
        raise TypeError("a loaded bundle has a spec")
    _, experiment_id = ready_store(params)
    done = register_version(
        spec,
        evaluation,
        record,
        catalog,
        data=data,
        pictures=[*sorted((out / "plots").glob("*.png")), *sorted((out / "overlays").glob("*.png"))],
        experiment_id=experiment_id,
        model_name=params.project.model_name,
        git=git_state(Path.cwd()),
        log_model=lambda: log_bundle(out / "model", spec),
    )
    if done.run_reopened:
        warn(f"the run that trained ({record.run_id}) is not in this store: scores are in run {done.run_id}")
    state = "registered" if done.created else "is registered already:"
    say(f"{state} {done.name} version {done.version}, bundle {spec.digest[:12]}, run {done.run_id}")
    next_step("mlflow ui, or `dvc exp run -S train.lr=3e-4` to compare another run")
