"""Verbs that fill and list the registry: register, models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stackseg.cli.console import next_step, print_json, say, table, warn
from stackseg.cli.project import OUTPUTS, checkpoints_folder, load_params, lock_file, read_registry, ready_store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from stackseg.dataset.records import Catalog
    from stackseg.evaluation.evaluate import Evaluation
    from stackseg.params import Params
    from stackseg.registry.versions import ChampionChange

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

    catalog, evaluation = read_catalog(out / "catalog.json"), read_evaluation(out / "evaluation.json")
    # loading verifies the digest before anything is registered under it
    load_bundle(out / "model")
    register_evaluated(params, ready_store(params), evaluation, catalog, model=out / "model", data=data, out=out)


def register_evaluated(
    params: Params,
    store: tuple[Path, str],
    evaluation: Evaluation,
    catalog: Catalog,
    *,
    model: Path,
    data: Path,
    out: Path,
) -> None:
    """Register a bundle, which was loaded before, with its scores, and say what came of it.

    `store` is what `ready_store` gives, which is asked for before a bundle is scored.
    """
    from stackseg.model.bundle import read_spec
    from stackseg.registry.register import register as register_version
    from stackseg.serving.packaging import log_bundle
    from stackseg.tracking.run_logger import remove_checkpoints_of

    spec = read_spec(model)
    root, experiment_id = store
    done = register_version(
        spec,
        evaluation,
        catalog,
        data=data,
        out=out,
        experiment_id=experiment_id,
        model_name=params.project.model_name,
        lock=lock_file(root),
        log_model=lambda: log_bundle(model, spec),
    )
    remove_checkpoints_of(done.trained_by, checkpoints_folder(root))
    if done.run_id != done.trained_by:
        warn(f"the run that trained ({done.trained_by}) is not in this store: scores are in run {done.run_id}")
    what = f"{done.name} version {done.version}, bundle {spec.digest[:12]}"
    # an equal bundle may have been trained again, by a run that is not the version's
    say(f"registered {what}, run {done.run_id}" if done.created else f"is registered already: {what}")
    next_step("stackseg promote, mlflow ui, or `dvc exp run -S train.lr=3e-4` to compare another run")


def models(
    history: Annotated[bool, typer.Option("--history", help="Show who changed the champion, when and why.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the registered versions, or the changes of champion."""
    from stackseg.registry.versions import NONE_YET

    known = read_registry(load_params())
    if history:
        if as_json:
            print_json([one.model_dump(mode="json") for one in known.history])
        else:
            shown = ("when (UTC)", "what", "version", "who", "why")
            changes = [_change_row(one) for one in known.history]
            table(f"champions of {known.name}", shown, changes, whole=("when (UTC)", "version"))
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


def _change_row(change: ChampionChange) -> tuple[str, ...]:
    version = f"{change.from_version or '-'} to {change.to_version}"
    return f"{change.when:%Y-%m-%d %H:%M:%S}", change.action, version, f"{change.who}@{change.host}", change.why


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
