"""Verbs that fill and list the registry: register, models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stackseg.cli.console import next_step, print_json, say, table, warn
from stackseg.cli.project import OUTPUTS, load_params
from stackseg.cli.store import ready_registry, ready_store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from stackseg.params import Params
    from stackseg.registry.champion import Move

PANEL = "Models"


def attach(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for verb in (register, models):
        app.command(rich_help_panel=PANEL)(verb)


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
    from stackseg.dataset.records import read_catalog
    from stackseg.evaluation.report import read_evaluation
    from stackseg.model.bundle import load_bundle
    from stackseg.registry.register import register as register_version
    from stackseg.serving.packaging import log_bundle
    from stackseg.tracking.lineage import git_state
    from stackseg.tracking.run_logger import read_run

    catalog = read_catalog(out / "catalog.json")
    evaluation = read_evaluation(out / "evaluation.json")
    record = read_run(out / "run.json")
    # loading verifies the digest before anything is registered under it
    bundle = load_bundle(out / "model")
    spec = bundle.spec
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
    what = f"{done.name} version {done.version}, bundle {spec.digest[:12]}"
    # an equal bundle may have been trained again, by a run that is not the version's
    say(f"registered {what}, run {done.run_id}" if done.created else f"is registered already: {what}")
    next_step("stackseg promote, mlflow ui, or `dvc exp run -S train.lr=3e-4` to compare another run")


def models(
    history: Annotated[bool, typer.Option("--history", help="Show who moved the champion, when and why.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the registered versions, or the moves of the champion."""
    from stackseg.registry.champion import history as moves_of
    from stackseg.registry.versions import NONE_YET

    _, known = ready_registry(load_params())
    if history:
        moves = moves_of(known.name)
        if as_json:
            print_json([one.model_dump(mode="json") for one in moves])
        else:
            table(
                f"champions of {known.name}",
                ("when (UTC)", "what", "version", "who", "why", "outcome"),
                [_move_row(one) for one in moves],
                whole=("when (UTC)", "version"),
            )
        return
    if as_json:
        print_json([_listed(one, known.aliases_of(number)) for number, one in known.versions.items()])
        return
    if not known.versions:
        say(f"no version of {known.name} is registered yet")
        next_step(NONE_YET)
        return
    columns = ("v", "alias", "IoU", "interval", "data", "cat.", "commit", "run", "age")
    rows = [_version_row(one, known.aliases_of(number)) for number, one in known.versions.items()]
    table(f"versions of {known.name}", columns, rows, whole=[one for one in columns if one != "alias"])
    if "champion" not in known.aliases:
        next_step("stackseg promote")


def _move_row(move: Move) -> tuple[str, ...]:
    version = f"{move.from_version or '-'} to {move.to_version}"
    when = f"{move.when:%Y-%m-%d %H:%M:%S}"
    return when, move.action, version, f"{move.who}@{move.host}", move.why, move.outcome


def _version_row(version: ModelVersion, aliases: list[str]) -> tuple[Any, ...]:
    tags = version.tags
    low, dots, high = tags.get("mean_iou_interval", "").partition(" ")[0].partition("..")
    # short enough for 80 columns with an alias; --json has all of it
    return (
        str(version.version),
        ", ".join(aliases),
        tags.get("mean_iou", ""),
        f"{float(low):.3f}–{float(high):.3f}".replace("0.", ".") if dots else "null",
        tags.get("data_md5", "")[:4],
        tags.get("catalog_digest", "")[:4],
        tags.get("git_commit", "")[:7] + ("+" if tags.get("git_dirty") == "true" else ""),
        str(version.run_id)[:6],
        _age(version.creation_timestamp),
    )


def _listed(version: ModelVersion, aliases: list[str]) -> dict[str, Any]:
    return {
        "version": str(version.version),
        "aliases": aliases,
        "run_id": version.run_id,
        "created": version.creation_timestamp,
        "source": version.source,
        "tags": dict(version.tags),
    }


def _age(created_ms: int) -> str:
    import time

    seconds = time.time() - created_ms / 1000
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
