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
from stackseg.search.progress import FAILURE, MET, hand_back, standing_of
from stackseg.search.pruning_callback import Follower, TrialTaken, is_taken
from stackseg.search.space.space import Space
from stackseg.search.storage_errors import is_storage_error
from stackseg.search.study import FOLD_SCORES, RUN_ID, WORKER, best_trials
from stackseg.search.trial_runs import end_trial_run, open_trial_run, trial_folder, trial_tags
from stackseg.tracking.logged_training import train_and_log
from stackseg.tracking.run_logger import log_metrics
from stackseg.training.callbacks import TrainingStopped
from stackseg.training.train import Machine, TrainingResult


class TrialError(Exception):
    """A trial that could not be trained with its params; the study goes on without it."""


@dataclass(frozen=True)
class Bench:
    """Where trials are made: the data, the run of the study, and the folder of the trials' bundles."""

    space: Space
    catalog: Catalog
    data: Path
    folder: Path
    checkpoints: Path
    experiment_id: str
    parent_run: str
    machine: Machine
    num_trials: int
    worker: str
    """The name of this process, unlike that of any other."""
    must_end: Callable[[], bool]
    """Whether this process has been told to end, or has lost the one that started it."""


def make_trial(trial: Trial, bench: Bench) -> float | tuple[float, ...]:
    """Train with what the trial suggests, and return its values.

    Raises
    ------
    TrialPruned
        The pruner, or the folds so far, say that it is not worth going on.
    TrialError
        It cannot be trained so: impossible params, a loss that is no number, out of memory.
    TrialTaken
        This worker was taken for dead meanwhile, and the trial is another's; its run is closed as stale.
    """
    _refuse_surplus(trial, bench)
    # no trial is begun twice: what lies there is that of a study of this name which is gone
    shutil.rmtree(trial_folder(bench.checkpoints, trial.number), ignore_errors=True)
    trial.set_user_attr(WORKER, bench.worker)
    trial.set_user_attr(RUN_ID, None)  # a trial that is made once more still has that of the one before
    started = time.perf_counter()
    try:
        values = _told_values(trial, bench, started)
    except TrialTaken:
        end_trial_run(trial, "stale", started, "its worker was silent for too long")
        raise
    except TrialPruned:
        raise
    except KeyboardInterrupt:
        if not is_taken(trial):
            hand_back(trial.study, trial.number, trial.params, trial.user_attrs.get(MET))
        end_trial_run(trial, "interrupted", started)
        raise
    except Exception as error:
        if not _is_its_own(error, trial):
            with suppress(Exception):  # what has befallen it may have befallen MLflow as well
                end_trial_run(trial, "interrupted", started, str(error))
            hand_back(trial.study, trial.number, trial.params, str(error))
            raise
        message = "out of memory" if is_out_of_memory(error) else str(error) or type(error).__name__
        trial.set_user_attr(FAILURE, message)
        if trial.user_attrs[RUN_ID] is None:  # it failed before its training could open one
            open_trial_run(trial, bench.experiment_id, bench.parent_run)
        end_trial_run(trial, "failed", started, message)
        raise TrialError(message) from None
    return values[0] if len(values) == 1 else values


def tidy_bundles(study: Study, folder: Path, num_kept: int | None) -> None:
    """Remove the folders of trials that are done and not among the best, or not on the front if none is cut off."""
    # in this order: what another worker ends in between may be the best
    done = [one.number for one in study.get_trials(deepcopy=False) if one.state.is_finished()]
    kept = {one.number for one in best_trials(study)[:num_kept]}
    for number in done:
        if number not in kept:
            shutil.rmtree(trial_folder(folder, number), ignore_errors=True)


def _is_its_own(error: Exception, trial: Trial) -> bool:
    """Return whether an error is of the trial, and not of the machine or of everything: then the study goes on."""
    if isinstance(error, ModelError | ParamsError) or is_out_of_memory(error):
        return True
    # a full disk, a lost server
    if isinstance(error, MachineError | StoreError | MlflowException) or is_storage_error(error):
        return False
    # what nobody has foreseen ends the search, so that it is seen; met once more, it must not bar the study for good
    return MET in trial.user_attrs


def _told_values(trial: Trial, bench: Bench, started: float) -> tuple[float, ...]:
    """Return the trial's values, once its run has them; a run that MLflow could not close is not that of a trial."""
    try:
        try:
            values = _own_values(trial, bench)
        finally:
            # first of all: on a full disk this makes room for what is to be told of the trial
            shutil.rmtree(trial_folder(bench.checkpoints, trial.number), ignore_errors=True)
    except TrialPruned:
        end_trial_run(trial, "pruned", started)
        raise
    objectives = bench.space.present.search.objectives
    told = {f"objective/{name}": value for name, value in zip(objectives, values, strict=True)}
    log_metrics(trial.user_attrs[RUN_ID], told)
    end_trial_run(trial, "complete", started)
    return values


def _own_values(trial: Trial, bench: Bench) -> tuple[float, ...]:
    """Return the trial's values, unless it has become another's."""
    try:
        values = _values(trial, bench)
    except Exception:
        # nothing can be noted of a trial that has ended: whatever was raised may come from that
        if is_taken(trial):
            raise TrialTaken from None
        raise
    if is_taken(trial):
        raise TrialTaken
    return values


def _values(trial: Trial, bench: Bench) -> tuple[float, ...]:
    follower = Follower(trial, bench.space.most("train.epochs"), bench.must_end)
    overrides = bench.space.suggest(trial)
    trial.set_user_attr("host", socket.gethostname())
    params = bench.space.present.override(overrides, f"trial {trial.number}")
    search = params.search
    follower.reports = len(search.objectives) == 1
    # what others are to be better than has a score, whoever comes first
    follower.may_prune = trial.params != bench.space.first_trial()
    if search.folds is None:
        result = _train(trial, bench, params, bench.catalog, follower, trial_folder(bench.folder, trial.number))
        score = _score(result)
    else:
        score = _folds(trial, bench, params, follower, search.folds)
    return tuple(_objective(name, score, bench, trial.number) for name in search.objectives)


def _train(
    trial: Trial,
    bench: Bench,
    params: Params,
    catalog: Catalog,
    follower: Follower,
    out: Path,
    fold: int | None = None,
) -> TrainingResult:
    name = f"trial {trial.number}" if fold is None else f"trial {trial.number} fold {fold}"
    tags = trial_tags(trial.number, name, bench.parent_run if fold is None else trial.user_attrs[RUN_ID])
    try:
        result = train_and_log(
            params,
            catalog,
            data=bench.data,
            out=out,
            checkpoints=trial_folder(bench.checkpoints, trial.number),
            experiment_id=bench.experiment_id,
            machine=bench.machine,
            callbacks=[follower],
            tags=tags if fold is None else {**tags, "fold": str(fold)},
            images=False,  # two pictures per epoch and trial are more than anybody looks at
        )
    except TrainingStopped as stop:
        raise TrialPruned(str(stop)) from None
    if result is None:
        raise TypeError("a trial trains in one process")
    return result


def _folds(trial: Trial, bench: Bench, params: Params, follower: Follower, num_folds: int) -> float:
    """Train the folds in order; a trial that trails the best one on the same folds ends early."""
    run_id = open_trial_run(trial, bench.experiment_id, bench.parent_run)
    follower.notes_run = False
    scores: list[float] = []
    for fold in range(num_folds):
        out = trial_folder(bench.folder, trial.number) / str(fold)
        catalog = fold_catalog(bench.catalog, bench.data, fold=fold, folds=num_folds)
        result = _train(trial, bench, params, catalog, follower, out, fold)
        follower.reports = False  # the pruner compares the epochs of fold 0
        scores.append(_score(result))
        trial.set_user_attr(FOLD_SCORES, scores)
        mean = sum(scores) / len(scores)
        log_metrics(run_id, {"folds/mean_iou": scores[-1], "folds/running_mean_iou": mean}, step=fold)
        best = _best_folds(trial.study)
        # of several objectives, one that trails in this one may lead in another
        may_end = follower.may_prune and len(params.search.objectives) == 1
        if may_end and fold + 1 < num_folds and len(best) == num_folds:
            behind = sum(best[: fold + 1]) / (fold + 1) - mean
            if behind > bench.space.present.search.fold_margin:
                raise TrialPruned(f"pruned after fold {fold}: {behind:.4f} behind the best trial on the same folds")
    return sum(scores) / len(scores)


def _best_folds(study: Study) -> list[float]:
    best = best_trials(study)
    return list(best[0].user_attrs.get(FOLD_SCORES, [])) if best else []


def _score(result: TrainingResult) -> float:
    score = result.spec.validation.mean_iou
    if score is None:
        raise DataError(
            "the validation part has no labelled pixel", expected="a mean IoU to search by", remedy="change the split"
        )
    return score


def _objective(name: str, score: float, bench: Bench, number: int) -> float:
    if name == "mean_iou":
        return score
    folder = trial_folder(bench.folder, number)
    model = folder / "model" if (folder / "model").is_dir() else folder / "0" / "model"
    bundle = load_bundle(model, pick_device(bench.machine.device))
    if name == "parameters":
        # as built: the bundle's own network has layers folded into others
        built = build_network(bundle.inference.network, encoder_weights=None)
        return float(sum(one.numel() for one in built.parameters()))
    ref, _ = bench.catalog.planes("validation")[0]
    return measure_speed(bundle, bench.data, ref)


def _refuse_surplus(trial: Trial, bench: Bench) -> None:
    """End a trial that began in the same moment as the last one that was asked for, and queue it for later."""
    trials = trial.study.get_trials(deepcopy=False)
    earlier = sum(one.state == TrialState.RUNNING and one.number < trial.number for one in trials)
    if standing_of(trials).num_finished + earlier >= bench.num_trials:
        # it may be one that was queued; and one without params would be in a sampler's way
        bench.space.suggest(trial)
        hand_back(trial.study, trial.number, trial.params, trial.user_attrs.get(MET))
        raise TrialError("one more than was asked for")
