"""One trial: the same train() with other params, logged to a run of its own under the study's."""

from __future__ import annotations

import gc
import shutil
import socket
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlflow
import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME
from optuna import TrialPruned
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from stackseg.errors import DataError, MachineError, ModelError, ParamsError, StoreError, is_out_of_memory
from stackseg.imaging.catalog import Catalog, fold_catalog
from stackseg.learning.bundle import load_bundle
from stackseg.learning.callbacks import EpochReport, TrainingStart, TrainingStopped
from stackseg.learning.devices import pick_device
from stackseg.learning.network import build_network
from stackseg.learning.training import Machine, TrainingResult
from stackseg.lifecycle.promotion import measure_speed
from stackseg.lifecycle.runs import MAX_TAG, find_run, log_metrics
from stackseg.lifecycle.training_runs import train_and_log
from stackseg.params import Params
from stackseg.studies.space import Space
from stackseg.studies.standing import FAILURE, MET, SURPLUS, hand_back, standing_of, taken_up
from stackseg.studies.storage import is_storage_error
from stackseg.studies.study import FOLD_SCORES, RUN_ID, best_trials


class TrialError(Exception):
    """A trial that could not be trained with its params; the study goes on without it."""


class TrialTaken(Exception):  # noqa: N818  # no error of the trial
    """The trial was ended elsewhere, while this worker was taken for dead."""


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
    trial.set_user_attr(RUN_ID, None)  # a trial that is made once more still has that of the one before
    started = time.perf_counter()
    follower = _Follower(trial, bench)
    try:
        try:
            values = _own_values(trial, bench, follower)
        finally:
            # first of all: on a full disk this makes room for what is to be told of the trial
            shutil.rmtree(bench.checkpoints / _folder_name(trial.number), ignore_errors=True)
    except TrialTaken:
        _end(trial, "stale", started, "its worker was silent for too long")
        raise
    except TrialPruned:
        _end(trial, "pruned", started)
        raise
    except KeyboardInterrupt:
        if not _is_taken(trial):
            hand_back(trial.study, trial.number, trial.params)
        _end(trial, "interrupted", started)
        raise
    except Exception as error:
        if not _is_its_own(error, trial):
            hand_back(trial.study, trial.number, trial.params, str(error))
            raise
        message = "out of memory" if is_out_of_memory(error) else str(error) or type(error).__name__
        trial.set_user_attr(FAILURE, message)
        if trial.user_attrs[RUN_ID] is None:  # it failed before its training could open one
            _open_run(trial, bench)
        _end(trial, "failed", started, message)
        raise TrialError(message) from None
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    objectives = bench.space.present.search.objectives
    run_id = trial.user_attrs[RUN_ID]
    log_metrics(run_id, {f"objective/{name}": value for name, value in zip(objectives, values, strict=True)})
    _end(trial, "complete", started)
    return values[0] if len(values) == 1 else values


def trial_folder(bench_folder: Path, number: int) -> Path:
    """Return where a trial's bundle is."""
    return bench_folder / _folder_name(number)


def tidy_bundles(study: Study, folder: Path, num_kept: int) -> None:
    """Remove the folders of trials that are done and not among the best."""
    kept = {one.number for one in best_trials(study)[:num_kept]}
    for one in study.get_trials(deepcopy=False):
        if one.state.is_finished() and one.number not in kept:
            shutil.rmtree(trial_folder(folder, one.number), ignore_errors=True)


def _is_its_own(error: Exception, trial: Trial) -> bool:
    """Return whether an error is of the trial, and not of the machine or of everything: then the study goes on."""
    if isinstance(error, ModelError | ParamsError) or is_out_of_memory(error):
        return True
    # a full disk, a lost server
    if isinstance(error, MachineError | StoreError | MlflowException) or is_storage_error(error):
        return False
    # what nobody has foreseen ends the search, so that it is seen; met once more, it must not bar the study for good
    return MET in trial.user_attrs


def stale_callback(checkpoints: Path) -> Callable[[Study, FrozenTrial], None]:
    """Return what is done about a trial whose worker has died: its run is closed, and it is queued once more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        retry = RetryHeartbeatStaleTrialCallback(max_retry=1)

    def retry_and_close(study: Study, trial: FrozenTrial) -> None:
        if trial.number not in taken_up(study.get_trials(deepcopy=False)):
            # what the pruner noted of it is not the next one's
            again = {key: value for key, value in trial.system_attrs.items() if not key.startswith("completed_rung_")}
            trial.system_attrs = again
            retry(study, trial)
        shutil.rmtree(checkpoints / _folder_name(trial.number), ignore_errors=True)
        run_id = trial.user_attrs.get(RUN_ID)
        run = None if run_id is None else find_run(run_id)
        if run is not None:
            below = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}' and attributes.status = 'RUNNING'"
            for one in (run, *MlflowClient().search_runs([run.info.experiment_id], below)):  # folds have runs below it
                _close(one.info.run_id, "stale", "KILLED", "its worker died")

    return retry_and_close


class _Follower:
    """Callback that reports epochs to the pruner, and ends the training if the pruner or the search says so."""

    def __init__(self, trial: Trial, bench: Bench) -> None:
        self._trial = trial
        self._must_end = bench.must_end
        self._present_epochs = bench.space.present.train.epochs
        self._num_epochs = self._present_epochs
        self._last_step = 0
        self.prunes = False
        self.notes_run = True

    def on_start(self, start: TrainingStart) -> None:
        """Note the run, so that it can be closed if this process dies."""
        self._num_epochs = start.num_epochs
        run = mlflow.active_run()
        if run is not None and self.notes_run:
            self._trial.set_user_attr(RUN_ID, run.info.run_id)

    def on_step(self, epoch: int, step: int, loss: torch.Tensor) -> None:
        """End with the process that started this worker, or when it says so."""
        if self._must_end():
            raise KeyboardInterrupt

    def on_epoch(self, report: EpochReport) -> None:
        """Report the epoch's score."""
        if _is_taken(self._trial):
            raise TrialTaken
        if not self.prunes or report.validation_mean_iou is None:
            return
        # trials of other numbers of epochs are compared at the same share of their schedules
        step = (report.epoch + 1) * self._present_epochs // self._num_epochs
        if step <= self._last_step:  # Optuna keeps the first report of a step
            return
        self._last_step = step
        self._trial.report(report.validation_mean_iou, step=step)
        # what is trained to its last epoch has a score
        if report.epoch + 1 < self._num_epochs and self._trial.should_prune():
            raise TrainingStopped(f"pruned at epoch {report.epoch + 1}")


def _is_taken(trial: Trial) -> bool:
    """Return whether others have ended the trial, as they do where a worker is suspended or starved for too long."""
    return trial.study.get_trials(deepcopy=False)[trial.number].state != TrialState.RUNNING


def _own_values(trial: Trial, bench: Bench, follower: _Follower) -> tuple[float, ...]:
    """Return the trial's values, unless it has become another's."""
    try:
        values = _values(trial, bench, follower)
    except Exception:
        # nothing can be noted of a trial that has ended: whatever was raised may come from that
        if _is_taken(trial):
            raise TrialTaken from None
        raise
    if _is_taken(trial):
        raise TrialTaken
    return values


def _values(trial: Trial, bench: Bench, follower: _Follower) -> tuple[float, ...]:
    overrides = bench.space.suggest(trial)
    trial.set_user_attr("host", socket.gethostname())
    params = bench.space.present.override(overrides, f"trial {trial.number}")
    search = params.search
    follower.prunes = len(search.objectives) == 1
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
    follower: _Follower,
    out: Path,
    fold: int | None = None,
) -> TrainingResult:
    name = f"trial {trial.number}" if fold is None else f"trial {trial.number} fold {fold}"
    tags = _tags(trial, name, bench.parent_run if fold is None else trial.user_attrs[RUN_ID])
    try:
        result = train_and_log(
            params,
            catalog,
            data=bench.data,
            out=out,
            checkpoints=bench.checkpoints / _folder_name(trial.number),
            experiment_id=bench.experiment_id,
            machine=bench.machine,
            callbacks=[follower],
            tags=tags if fold is None else {**tags, "fold": str(fold)},
        )
    except TrainingStopped as stop:
        raise TrialPruned(str(stop)) from None
    if result is None:
        raise TypeError("a trial trains in one process")
    return result


def _tags(trial: Trial, name: str, parent: str) -> dict[str, str]:
    return {MLFLOW_PARENT_RUN_ID: parent, MLFLOW_RUN_NAME: name, "trial": str(trial.number)}


def _folds(trial: Trial, bench: Bench, params: Params, follower: _Follower, num_folds: int) -> float:
    """Train the folds in order; a trial that trails the best one on the same folds ends early."""
    run_id = _open_run(trial, bench)
    follower.notes_run = False
    scores: list[float] = []
    for fold in range(num_folds):
        out = trial_folder(bench.folder, trial.number) / str(fold)
        catalog = fold_catalog(bench.catalog, bench.data, fold=fold, folds=num_folds)
        result = _train(trial, bench, params, catalog, follower, out, fold)
        follower.prunes = False  # the pruner compares the epochs of fold 0
        scores.append(_score(result))
        trial.set_user_attr(FOLD_SCORES, scores)
        mean = sum(scores) / len(scores)
        log_metrics(run_id, {"folds/mean_iou": scores[-1], "folds/running_mean_iou": mean}, step=fold)
        best = _best_folds(trial.study)
        # of several objectives, one that trails in this one may lead in another
        if len(params.search.objectives) == 1 and fold + 1 < num_folds and len(best) == num_folds:
            behind = sum(best[: fold + 1]) / (fold + 1) - mean
            if behind > bench.space.present.search.fold_margin:
                raise TrialPruned(f"pruned after fold {fold}: {behind:.4f} behind the best trial on the same folds")
    return sum(scores) / len(scores)


def _open_run(trial: Trial, bench: Bench) -> str:
    """Open a run of the trial's own, with what it chose."""
    client = MlflowClient()
    tags = _tags(trial, f"trial {trial.number}", bench.parent_run)
    run_id: str = client.create_run(bench.experiment_id, tags=tags).info.run_id
    trial.set_user_attr(RUN_ID, run_id)
    for key, value in trial.params.items():
        client.log_param(run_id, key, value)
    return run_id


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
    """End a trial that began in the same moment as the last one that was asked for."""
    trials = trial.study.get_trials(deepcopy=False)
    earlier = sum(one.state == TrialState.RUNNING and one.number < trial.number for one in trials)
    if standing_of(trials).num_finished + earlier >= bench.num_trials:
        trial.set_user_attr(SURPLUS, True)
        raise TrialError("one more than was asked for")


def _end(trial: Trial, state: str, started: float, message: str = "") -> None:
    run_id = trial.user_attrs.get(RUN_ID)
    if run_id is None:
        return
    log_metrics(run_id, {"trial/seconds": time.perf_counter() - started})
    status = {"complete": "FINISHED", "failed": "FAILED"}.get(state, "KILLED")
    _close(run_id, state, status, message)


def _close(run_id: str, state: str, status: str, message: str) -> None:
    client = MlflowClient()
    client.set_tag(run_id, "trial.state", state)
    if message:
        client.set_tag(run_id, "failure", message[:MAX_TAG])
    client.set_terminated(run_id, status)


def _folder_name(number: int) -> str:
    return f"trial-{number:04d}"
