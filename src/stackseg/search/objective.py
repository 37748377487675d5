"""One trial: the same train() with other params, logged to a run of its own under the study's."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlflow.exceptions import MlflowException
from optuna import TrialPruned
from optuna.study import Study
from optuna.trial import Trial, TrialState

from stackseg.catalog.build import fold_catalog
from stackseg.dataset.records import Catalog
from stackseg.errors import DataError, MachineError, ModelError, ParamsError, StoreError, is_out_of_memory
from stackseg.model.bundle import load_bundle
from stackseg.model.devices import pick_device
from stackseg.model.network import build_network
from stackseg.params import Params
from stackseg.registry.gate import measure_speed
from stackseg.search.mlflow_runs import end_trial_run, open_trial_run, trial_folder, trial_tags
from stackseg.search.progress import EARLIER_ERROR, FAILURE, FOLD_SCORES, RUN_ID, WORKER, progress_of, requeue
from stackseg.search.pruning_callback import PruningCallback, TrialTakenOver, is_taken_over
from stackseg.search.space.space import Space
from stackseg.search.storage_errors import is_storage_error
from stackseg.search.study import best_trials
from stackseg.tracking.logged_training import train_and_log
from stackseg.tracking.run_logger import log_metrics
from stackseg.training.callbacks import TrainingStopped
from stackseg.training.train import Machine, TrainingResult


class TrialError(Exception):
    """A trial that could not be trained with its params; the study goes on without it."""


@dataclass(frozen=True)
class SearchJob:
    """What a search was asked for; each worker process gets a copy."""

    params: Params
    catalog: Catalog
    data: Path
    root: Path
    url: str
    """Of the study storage."""
    study: str
    folder: Path
    """Of the trials' bundles."""
    checkpoints: Path
    experiment_id: str
    parent_run: str
    """The study's MLflow run."""
    lock_file: Path
    """Of the tracking store."""
    machine: Machine
    num_trials: int
    num_workers: int
    num_kept: int
    """How many of the best bundles stay."""
    seed: int
    """Of the samplers: each worker adds its number."""
    deadline: float | None
    """Seconds since the epoch after which no trial begins."""


@dataclass(frozen=True)
class TrialContext:
    """What a worker makes its trials with."""

    job: SearchJob
    space: Space
    machine: Machine
    worker: str
    """The name of this process, unique among all machines and searches."""
    must_end: Callable[[], bool]
    """Whether this process has been told to end, or the one that started it has died."""


def run_trial(trial: Trial, context: TrialContext) -> float | tuple[float, ...]:
    """Train with what the trial suggests, and return its objective values.

    Raises
    ------
    TrialPruned
        The pruner, or the folds so far, say that it is not worth going on.
    TrialError
        It cannot be trained so: impossible params, a loss that is not finite, out of memory.
    TrialTakenOver
        Others took this worker for dead, and the trial is repeated; its run is closed as stale.
    """
    _end_surplus(trial, context)
    # no trial is begun twice: what lies there is left of an earlier study of this name
    shutil.rmtree(trial_folder(context.job.checkpoints, trial.number), ignore_errors=True)
    trial.set_user_attr(WORKER, context.worker)
    trial.set_user_attr(RUN_ID, None)  # a retried trial still has the run of the one before
    started = time.perf_counter()
    try:
        return _train_and_record(trial, context, started)
    except TrialPruned:
        raise
    except (Exception, KeyboardInterrupt) as error:
        # nothing can be recorded of a trial that others have ended: any error may come from that
        if isinstance(error, TrialTakenOver) or is_taken_over(trial):
            end_trial_run(trial, "stale", started, "its worker was silent for too long")
            raise TrialTakenOver from None
        if isinstance(error, KeyboardInterrupt) or not _is_own_failure(error, trial):
            with suppress(Exception):  # MLflow may be out of reach for the same reason
                end_trial_run(trial, "interrupted", started, str(error))
            is_interrupt = isinstance(error, KeyboardInterrupt)
            earlier = trial.user_attrs.get(EARLIER_ERROR) if is_interrupt else str(error)
            requeue(trial.study, trial.number, trial.params, earlier)
            raise
        message = "out of memory" if is_out_of_memory(error) else str(error) or type(error).__name__
        trial.set_user_attr(FAILURE, message)
        if trial.user_attrs[RUN_ID] is None:  # it failed before its training could open one
            open_trial_run(trial, context.space.params.model, context.job.experiment_id, context.job.parent_run)
        end_trial_run(trial, "failed", started, message)
        raise TrialError(message) from None


def remove_surplus_bundles(study: Study, folder: Path, num_kept: int | None) -> None:
    """Remove the folders of finished trials that are not among the best; None keeps the whole Pareto front."""
    # in this order: what another worker finishes in between may be the best
    finished = [one.number for one in study.get_trials(deepcopy=False) if one.state.is_finished()]
    kept = {one.number for one in best_trials(study)[:num_kept]}
    for number in finished:
        if number not in kept:
            shutil.rmtree(trial_folder(folder, number), ignore_errors=True)


def _end_surplus(trial: Trial, context: TrialContext) -> None:
    """End a trial that began at the same moment as the last one that was asked for, and queue it for later."""
    trials = trial.study.get_trials(deepcopy=False)
    earlier = sum(one.state == TrialState.RUNNING and one.number < trial.number for one in trials)
    if progress_of(trials).num_finished + earlier >= context.job.num_trials:
        # it may have been queued; and a trial without params would disturb the sampler
        context.space.suggest(trial)
        requeue(trial.study, trial.number, trial.params, trial.user_attrs.get(EARLIER_ERROR))
        raise TrialError("one more than was asked for")


def _is_own_failure(error: BaseException, trial: Trial) -> bool:
    """Return whether an error is the trial's own, so that the study goes on, and not the machine's or a server's."""
    if isinstance(error, ModelError | ParamsError) or is_out_of_memory(error):
        return True
    # a full disk, a lost server
    if isinstance(error, MachineError | StoreError | MlflowException) or is_storage_error(error):  # type: ignore[arg-type]
        return False
    # an unforeseen error ends the search, so that it is seen; when it comes back it must not block the study for good
    return EARLIER_ERROR in trial.user_attrs


def _train_and_record(trial: Trial, context: TrialContext, started: float) -> float | tuple[float, ...]:
    """Train, and close the run before Optuna hears of the end: a trial whose run stays open is repeated."""
    pruned: TrialPruned | None = None
    values: tuple[float, ...] = ()
    try:
        values = _objective_values(trial, context)
    except TrialPruned as stop:
        pruned = stop
    finally:
        # first of all: on a full disk this makes room for what is recorded of the trial
        shutil.rmtree(trial_folder(context.job.checkpoints, trial.number), ignore_errors=True)
    if is_taken_over(trial):
        raise TrialTakenOver
    if pruned is not None:
        end_trial_run(trial, "pruned", started)
        raise pruned
    names = context.job.params.search.objectives
    metrics = {f"objective/{name}": value for name, value in zip(names, values, strict=True)}
    log_metrics(trial.user_attrs[RUN_ID], metrics)
    end_trial_run(trial, "complete", started)
    return values[0] if len(values) == 1 else values


def _objective_values(trial: Trial, context: TrialContext) -> tuple[float, ...]:
    callback = PruningCallback(trial, context.space.max_value("train.epochs"), context.must_end)
    overrides = context.space.suggest(trial)
    trial.set_user_attr("host", socket.gethostname())
    params = context.space.params.override(overrides, f"trial {trial.number}")
    callback.reports = len(params.search.objectives) == 1
    # the present params, whoever trains them first, need a score: the others are to be better
    callback.may_prune = trial.params != context.space.first_trial()
    if params.search.folds is None:
        folder = trial_folder(context.job.folder, trial.number)
        score = _validation_score(_train(trial, context, params, context.job.catalog, callback, folder))
    else:
        score = _train_folds(trial, context, params, callback, params.search.folds)
    return tuple(_objective_value(name, score, context, trial.number) for name in params.search.objectives)


def _train(
    trial: Trial,
    context: TrialContext,
    params: Params,
    catalog: Catalog,
    callback: PruningCallback,
    out: Path,
    fold: int | None = None,
) -> TrainingResult:
    parent = context.job.parent_run if fold is None else trial.user_attrs[RUN_ID]
    try:
        result = train_and_log(
            params,
            catalog,
            data=context.job.data,
            out=out,
            checkpoints=trial_folder(context.job.checkpoints, trial.number),
            experiment_id=context.job.experiment_id,
            machine=context.machine,
            callbacks=[callback],
            tags=trial_tags(trial, params.model, parent, fold),
            images=False,  # two pictures per epoch and trial are more than anybody looks at
        )
    except TrainingStopped as stop:
        raise TrialPruned(str(stop)) from None
    if result is None:
        raise TypeError("a trial trains in one process")
    return result


def _train_folds(
    trial: Trial, context: TrialContext, params: Params, callback: PruningCallback, num_folds: int
) -> float:
    """Train the folds in order, and return their mean; a trial that trails the best on the same folds ends early."""
    run_id = open_trial_run(trial, params.model, context.job.experiment_id, context.job.parent_run)
    callback.records_run = False
    # of several objectives, a trial that trails in this one may lead in another
    may_end = callback.may_prune and len(params.search.objectives) == 1
    scores: list[float] = []
    for fold in range(num_folds):
        out = trial_folder(context.job.folder, trial.number) / str(fold)
        catalog = fold_catalog(context.job.catalog, context.job.data, fold=fold, folds=num_folds)
        scores.append(_validation_score(_train(trial, context, params, catalog, callback, out, fold)))
        callback.reports = False  # the pruner compares the epochs of fold 0
        trial.set_user_attr(FOLD_SCORES, scores)
        mean = sum(scores) / len(scores)
        log_metrics(run_id, {"folds/mean_iou": scores[-1], "folds/running_mean_iou": mean}, step=fold)
        best: list[float] = next((one.user_attrs.get(FOLD_SCORES, []) for one in best_trials(trial.study)), [])
        if may_end and fold + 1 < num_folds and len(best) == num_folds:
            behind = sum(best[: fold + 1]) / (fold + 1) - mean
            if behind > params.search.fold_margin:
                raise TrialPruned(f"pruned after fold {fold}: {behind:.4f} behind the best trial on the same folds")
    return sum(scores) / len(scores)


def _validation_score(result: TrainingResult) -> float:
    score = result.spec.validation.mean_iou
    if score is None:
        raise DataError(
            "the validation part has no labelled pixel", expected="a mean IoU to search by", remedy="change the split"
        )
    return score


def _objective_value(name: str, score: float, context: TrialContext, number: int) -> float:
    if name == "mean_iou":
        return score
    folder = trial_folder(context.job.folder, number)
    model = folder / "model" if (folder / "model").is_dir() else folder / "0" / "model"
    bundle = load_bundle(model, pick_device(context.machine.device))
    if name == "parameters":
        # as built: in the bundle's own network, layers are folded into others
        built = build_network(bundle.inference.network, encoder_weights=None)
        return float(sum(one.numel() for one in built.parameters()))
    ref, _ = context.job.catalog.planes("validation")[0]
    return measure_speed(bundle, context.job.data, ref)
