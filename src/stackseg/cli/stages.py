"""The verbs that dvc.yaml calls: catalog, train, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stackseg.atomic import require_writable
from stackseg.cli.console import counting, figure, next_step, say, table
from stackseg.cli.data import show_catalog
from stackseg.cli.project import CATALOG, checkpoints_folder, load_params, ready_store
from stackseg.cli.stages_display import ShownTraining, show_scores

if TYPE_CHECKING:
    from stackseg.dataset.records import Catalog
    from stackseg.evaluation.evaluate import Evaluation
    from stackseg.params import Params
    from stackseg.training.parent import Parent
    from stackseg.training.train import Machine

PANEL = "Stages (dvc repro runs them)"
REGISTRY = "models:/"

DataFolder = Annotated[Path, typer.Argument(help="Folder of the specimens.")]
CatalogFile = Annotated[Path, typer.Option("--catalog", help="The catalogue to read.")]
Outputs = Annotated[Path, typer.Option("--out", help="Folder of the stage's outputs.")]
Device = Annotated[
    str, typer.Option(envvar="STACKSEG_DEVICE", help="auto (a GPU if there is one), cpu, cuda or cuda:<n>.")
]


def attach(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    app.command(rich_help_panel=PANEL)(catalog)
    app.command(rich_help_panel=PANEL)(train)
    app.command(rich_help_panel=PANEL)(evaluate)


def catalog(
    data: DataFolder = Path("data"),
    out: Annotated[Path, typer.Option(help="File to write.")] = CATALOG,
) -> None:
    """Describe the data: specimens, split, leakage, intensity statistics."""
    from stackseg.catalog.build import build_catalog
    from stackseg.dataset.records import write_catalog

    with counting("cataloguing") as progress:
        built = build_catalog(data, load_params(), progress=progress)
    write_catalog(out, built)
    show_catalog(built)
    next_step("dvc repro train")


def train(
    data: DataFolder = Path("data"),
    catalog: CatalogFile = CATALOG,
    out: Outputs = Path("outputs"),
    device: Device = "auto",
    processes: Annotated[
        int,
        typer.Option(
            min=1,
            envvar="STACKSEG_PROCESSES",
            help="Processes or GPUs that train together (on a CPU: without batch norm).",
        ),
    ] = 1,
    workers: Annotated[
        int, typer.Option(min=0, envvar="STACKSEG_WORKERS", help="Loader processes per training process.")
    ] = 0,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Train this many folds and pool their validation scores instead.")
    ] = None,
) -> None:
    """Train on the training part and keep the best epoch, logged to MLflow.

    An interrupted training goes on at its last epoch when the same command runs again.
    """
    from stackseg.dataset.records import read_catalog

    params, described = load_params(), read_catalog(catalog)

    # torch and the rest take seconds: a file that is not there is told before
    from stackseg.model.weights_file import find_weights_file
    from stackseg.tracking.lineage import require_dependency
    from stackseg.tracking.logged_training import train_and_log
    from stackseg.training.train import Machine

    machine = Machine(device=device, num_processes=processes, num_workers=workers)
    if params.augment.file is not None:
        require_dependency(Path("dvc.yaml"), "train", params.augment.file)
    own = find_weights_file(params.model.encoder, params.model.encoder_weights)
    if own is not None and own.package is None:
        require_dependency(Path("dvc.yaml"), "train", str(own.path))
    if params.model.init is not None:
        check_init(params.model.init, out)
    store = ready_store(params)
    parent = None if params.model.init is None else read_init(params.model.init)
    if folds is not None:
        train_folds(params, described, store, data, out, folds, machine, parent)
        return
    root, experiment_id = store
    with ShownTraining() as shown:
        result = train_and_log(
            params,
            described,
            data=data,
            out=out,
            checkpoints=checkpoints_folder(root),
            experiment_id=experiment_id,
            machine=machine,
            parent=parent,
            callbacks=[shown],
        )
    if result is None:
        return
    spec = result.spec
    say(
        f"best epoch {spec.validation.epoch + 1}: validation mean IoU {figure(spec.validation.mean_iou)}; "
        f"{out / 'model'} is bundle {spec.digest[:12]}"
    )
    next_step("dvc repro evaluate")


def check_init(init: str, out: Path) -> None:
    """Refuse a folder to begin from that would be gone when the stage runs, or that DVC does not watch.

    Raises
    ------
    ParamsError
        It is where the stage puts its own model, or is not among its dependencies.
    """
    from stackseg.errors import ParamsError
    from stackseg.tracking.lineage import require_dependency

    if init.startswith(REGISTRY):
        return
    if Path(init).resolve() == (out / "model").resolve():
        raise ParamsError(
            f"{init} is where this stage puts its model, and DVC removes that before the stage runs",
            expected="a model that stays",
            where="model.init",
            remedy=f"`dvc checkout {out / 'model'}` brings it back: copy it and name the copy, or name the registered "
            "version: models:/NAME@ALIAS",
        )
    require_dependency(Path("dvc.yaml"), "train", init)


def read_init(init: str) -> Parent:
    """Read the model that `model.init` names: a folder of this machine, or a version of the registry.

    Raises
    ------
    ModelError, StoreError
        There is none.
    """
    from stackseg.registry.versions import bundle_at, uri_of, version_at
    from stackseg.training.parent import read_parent

    if not init.startswith(REGISTRY):
        return read_parent(Path(init), init)
    version = version_at(init)
    with bundle_at(str(version.source), uri_of(version)) as folder:
        return read_parent(folder, init, str(version.version))


def train_folds(
    params: Params,
    catalog: Catalog,
    store: tuple[Path, str],
    data: Path,
    out: Path,
    folds: int,
    machine: Machine,
    parent: Parent | None,
) -> None:
    """Train the folds one after another, logged as children of one run, and show the pooled scores.

    `store` is what `ready_store` gives.
    """
    from stackseg.tracking.cross_validation import train_all_folds

    root, experiment_id = store
    with ShownTraining() as shown:
        pooled = train_all_folds(
            params,
            catalog,
            data=data,
            out=out / "folds",
            num_folds=folds,
            checkpoints=checkpoints_folder(root),
            experiment_id=experiment_id,
            machine=machine,
            parent=parent,
            callbacks=[shown],
            on_fold=lambda fold: say(f"fold {fold + 1} of {folds}"),
        )
    if pooled is None:
        return
    rows = [(one.fold, one.num_planes, one.mean_iou, one.digest[:12]) for one in pooled.folds]
    table("folds", ("fold", "planes", "mean IoU", "bundle"), rows)
    show_scores(pooled.evaluation)
    say(f"pooled over {folds} folds: mean IoU {figure(pooled.evaluation.mean_iou)}; {out / 'folds'} holds the bundles")
    next_step("dvc repro, to train on the whole training part and score it on the test part")


def evaluate(
    data: DataFolder = Path("data"),
    catalog: CatalogFile = CATALOG,
    model: Annotated[Path, typer.Option(help="The bundle to score.")] = Path("outputs/model"),
    out: Outputs = Path("outputs"),
    device: Device = "auto",
) -> None:
    """Score the model on the test part, draw its worst planes, and register the version."""
    from stackseg.cli.models import register_evaluated
    from stackseg.dataset.records import read_catalog

    params, described = load_params(), read_catalog(catalog)
    store = ready_store(params)  # first: scoring may take long
    evaluation = score_bundle(params, described, data=data, model=model, out=out, device=device)
    register_evaluated(params, store, evaluation, described, model=model, data=data, out=out)


def score_bundle(params: Params, catalog: Catalog, *, data: Path, model: Path, out: Path, device: str) -> Evaluation:
    """Score a bundle on the test part into `out`, and show the scores."""
    from stackseg.evaluation.report import score_bundle as score
    from stackseg.model.bundle import load_bundle
    from stackseg.model.devices import pick_device

    require_writable(out)
    bundle = load_bundle(model, pick_device(device))
    with counting("evaluating") as progress:
        evaluation = score(bundle, catalog, data, params.evaluate, out, progress=progress)
    show_scores(evaluation)
    return evaluation
