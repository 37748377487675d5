"""The verbs that dvc.yaml calls: catalog, train, evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stackseg.atomic import require_writable
from stackseg.cli.console import counting, figure, next_step, say, table, training_progress, warn
from stackseg.cli.data import show_catalog
from stackseg.cli.project import CATALOG, checkpoints_folder, load_params, ready_store

if TYPE_CHECKING:
    import torch

    from stackseg.dataset.records import Catalog
    from stackseg.evaluation.bootstrap import Interval
    from stackseg.evaluation.evaluate import Evaluation
    from stackseg.params import Params
    from stackseg.training.callbacks import ValidationPlane
    from stackseg.training.parent import Parent
    from stackseg.training.train import EpochReport, Machine, TrainingStart

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


def show_scores(evaluation: Evaluation) -> None:
    """Print the score table."""
    scores = evaluation.scores
    table(
        f"{evaluation.part} part, {scores.num_planes} planes",
        ("class", "IoU", "Dice", "precision", "recall", "boundary F1", "boundary IoU"),
        [
            (one.name, one.iou, one.dice, one.precision, one.recall, one.boundary_f1, one.boundary_iou)
            for one in scores.classes
        ],
    )
    say(
        f"mean IoU {figure(scores.mean_iou)}, mean Dice {figure(scores.mean_dice)}, "
        f"pixel accuracy {figure(scores.pixel_accuracy)}, "
        f"frequency-weighted IoU {figure(scores.frequency_weighted_iou)}"
    )
    say(f"mean IoU interval: {_interval(evaluation.mean_iou_interval)}")
    say(f"within planes only: {_interval(evaluation.mean_iou_interval_within_planes)}")
    if evaluation.rand_vi is not None:
        say(f"V_rand {figure(evaluation.rand_vi.v_rand)}, V_info {figure(evaluation.rand_vi.v_info)} after thinning")
    if (objects := evaluation.objects) is not None:
        say(
            f"objects: F1 {figure(objects.f1['0.5'])} at an IoU of 0.5, mean AP {figure(objects.mean_ap)}; "
            f"{objects.num_predicted} found, {objects.num_truth} true"
        )
        say(f"F1 interval: {_interval(objects.f1_interval)}")
    for line in evaluation.warnings:
        warn(line)


def _interval(interval: Interval) -> str:
    if interval.low is None:
        return f"null ({interval.reason})"
    return (
        f"{figure(interval.low)} to {figure(interval.high)} at {interval.confidence:.0%}, "
        f"{interval.num_units} units: {interval.unit}"
    )


class ShownTraining:
    """Callback that draws the progress bar: loss, validation IoU, time left."""

    def __enter__(self) -> ShownTraining:
        self._progress = training_progress()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def on_start(self, start: TrainingStart) -> None:
        """Open the bar."""
        if start.damaged_checkpoints is not None:
            warn(f"damaged checkpoints were put aside as {start.damaged_checkpoints}: training begins anew")
        if start.first_epoch == start.num_epochs:
            say("all epochs of an equal training are there: its model is written again")
        elif start.first_epoch:
            say(f"going on at epoch {start.first_epoch + 1} of an interrupted training")
        elif start.parent is not None:
            say(f"beginning with the weights of {start.parent}, bundle {start.parent.digest[:12]}")
        say(
            f"training {start.num_parameters / 1e6:.1f} M parameters on {start.device} in {start.precision}, "
            f"{start.num_epochs} epochs of {start.steps_per_epoch} steps"
        )
        self._start = start
        self._task = self._progress.add_task(
            "training",
            total=start.num_epochs * start.steps_per_epoch,
            completed=start.first_epoch * start.steps_per_epoch,
            epoch=f"{start.first_epoch}/{start.num_epochs}",
            loss="-",
            iou="-",
        )
        self._progress.start()

    def on_step(self, epoch: int, step: int, loss: torch.Tensor) -> None:
        """Move the bar."""
        self._progress.advance(self._task)

    def on_validation(self, report: EpochReport, planes: Sequence[ValidationPlane]) -> None:
        """Show no picture."""

    def on_epoch(self, report: EpochReport) -> None:
        """Show loss and validation IoU; without a terminal, a line per validation."""
        epoch = f"{report.epoch + 1}/{self._start.num_epochs}"
        self._progress.update(self._task, epoch=epoch, loss=f"{report.loss:.3f}")
        if report.validation_mean_iou is None:
            return
        score = f"{report.validation_mean_iou:.4f}{' (best)' if report.best else ''}"
        self._progress.update(self._task, iou=score)
        if not self._progress.console.is_terminal:
            say(
                f"epoch {epoch}: loss {report.loss:.3f}, validation mean IoU {score}, "
                f"{report.patches_per_second:.0f} patches/s"
            )
