"""MLflow runs of a search: one of the study, with its best trial and its pictures, and below it one per trial."""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import Study
from optuna.trial import Trial, TrialState
from optuna.visualization import matplotlib as plots

from stackseg.params.model import ModelParams
from stackseg.search.progress import FAILURE, RUN_ID, progress_of, retried_trials
from stackseg.search.study import IDENTITY, STUDY_ID, best_trials, iou_index
from stackseg.tracking.run_logger import MAX_TAG, find_run, log_metrics
from stackseg.tracking.store_errors import store_lock

STUDY_TAG, BEST_TAG = "optuna.study_id", "best_of_study"


def trial_folder(folder: Path, number: int) -> Path:
    """Return where a trial's bundle, or its checkpoints, are."""
    return folder / f"trial-{number:04d}"


def trial_tags(trial: Trial, model: ModelParams, parent: str, fold: int | None = None) -> dict[str, str]:
    """Return the tags of the run of a trial, or of one of its folds, under the run `parent`."""
    names = [trial.study.study_name, f"trial {trial.number}", f"{model.architecture}-{model.encoder}"]
    tags = {MLFLOW_PARENT_RUN_ID: parent, "trial": str(trial.number)}
    if fold is not None:
        names.insert(2, f"fold {fold}")
        tags["fold"] = str(fold)
    return tags | {MLFLOW_RUN_NAME: " · ".join(names)}


def open_trial_run(trial: Trial, model: ModelParams, experiment_id: str, parent: str) -> str:
    """Open a run for a trial that no training has opened one for, with what the trial chose."""
    client = MlflowClient()
    run_id: str = client.create_run(experiment_id, tags=trial_tags(trial, model, parent)).info.run_id
    trial.set_user_attr(RUN_ID, run_id)
    for key, value in trial.params.items():
        client.log_param(run_id, key, value)
    return run_id


def end_trial_run(trial: Trial, state: str, started: float, message: str = "") -> None:
    """End the trial's run, if it has one, and log how long it took.

    Parameters
    ----------
    trial
        Whose run.
    state
        "complete", "pruned", "failed", "interrupted" or "stale"; MLflow's status follows from it.
    started
        When it began, by `time.perf_counter`.
    message
        Why it ended so.
    """
    run_id = trial.user_attrs.get(RUN_ID)
    if run_id is not None:
        close_trial_run(run_id, state, message)
        log_metrics(run_id, {"trial/seconds": time.perf_counter() - started})


def close_trial_run(run_id: str, state: str, message: str) -> None:
    """End a run, and tag how its trial ended, and why."""
    client = MlflowClient()
    # first of all: on a full disk the rest may fail
    client.set_terminated(run_id, {"complete": "FINISHED", "failed": "FAILED"}.get(state, "KILLED"))
    client.set_tag(run_id, "trial.state", state)
    if message:
        client.set_tag(run_id, "failure", message[:MAX_TAG])


def open_study_run(study: Study, experiment_id: str, lock_file: Path) -> str:
    """Return the id of the study's run in this store, which is opened if there is none, or reopened.

    Runs below it that trials have left open are closed.
    """
    client = MlflowClient()
    study_id, identity = study.user_attrs[STUDY_ID], study.user_attrs[IDENTITY]
    with store_lock(lock_file):
        found = _runs_of(study_id, experiment_id)
        if not found:
            tags = {MLFLOW_RUN_NAME: f"study {study.study_name}", STUDY_TAG: study_id, "study": study.study_name}
            client.create_run(experiment_id, tags=tags)
            found = _runs_of(study_id, experiment_id)
    # machines that share a server may each have opened one: all use the earliest
    run_id, *others = found
    for one in others:
        if not client.search_runs([experiment_id], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{one}'", max_results=1):
            client.delete_run(one)
    client.update_run(run_id, "RUNNING")
    close_left_runs(study, run_id, experiment_id)
    client.log_dict(run_id, identity, "study.json")
    if "search.space" not in client.get_run(run_id).data.params:
        client.log_param(run_id, "search.space", json.dumps(identity["space"]))
        client.log_param(run_id, "search.objectives", ", ".join(identity["objectives"]))
        client.log_param(run_id, "search.folds", str(identity["folds"]))
    return run_id


def close_left_runs(study: Study, run_id: str, experiment_id: str) -> None:
    """Close the runs of trials that have ended without closing them.

    MLflow was out of reach then, or a machine that records its runs elsewhere took the trial over.
    """
    client = MlflowClient()
    trials = study.get_trials(deepcopy=False)
    stale = retried_trials(trials)
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        number, parent = run.data.tags.get("trial"), run.data.tags.get(MLFLOW_PARENT_RUN_ID)
        if number is None or parent is None:
            continue
        # a fold's run is below that of its trial
        if run_id not in (parent, client.get_run(parent).data.tags.get(MLFLOW_PARENT_RUN_ID)):
            continue
        trial = trials[int(number)]
        if trial.state.is_finished():
            state = trial.state.name.lower()
            if trial.state == TrialState.FAIL:
                interrupted = "stale" if trial.number in stale else "interrupted"
                state = "failed" if FAILURE in trial.user_attrs else interrupted
            close_trial_run(run.info.run_id, state, "its run had been left open")


def close_study_run(study: Study, run_id: str, experiment_id: str, status: str, lock_file: Path) -> None:
    """Tag the best trial, log the study's figures and pictures, and end the run with a status of MLflow's."""
    with store_lock(lock_file):  # the same search on another machine ends at the same moment
        try:
            close_left_runs(study, run_id, experiment_id)
            _log_outcome(study, run_id, experiment_id)
        finally:
            MlflowClient().set_terminated(run_id, status)


def _log_outcome(study: Study, run_id: str, experiment_id: str) -> None:
    client = MlflowClient()
    progress = progress_of(study.get_trials(deepcopy=False))
    best = best_trials(study)
    for former in client.search_runs(
        [experiment_id], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}' and tags.{BEST_TAG} = 'true'"
    ):
        client.delete_tag(former.info.run_id, BEST_TAG)
    metrics: dict[str, float | None] = {
        "trials/complete": progress.num_complete,
        "trials/pruned": progress.num_pruned,
        "trials/failed": progress.num_failed,
    }
    if best:
        client.set_tag(run_id, "best_trial", best[0].number)
        best_run = best[0].user_attrs.get(RUN_ID)
        if best_run:
            client.set_tag(run_id, "best_run", best_run)
            if find_run(best_run) is not None:  # another machine may record its runs elsewhere
                client.set_tag(best_run, BEST_TAG, "true")
        metrics["objective/mean_iou"] = best[0].values[iou_index(study)]
        client.log_dict(run_id, {"number": best[0].number, "params": best[0].params}, "best_trial.json")
    metrics |= {f"worth/{key}": value for key, value in importances(study).items()}
    log_metrics(run_id, metrics)
    with tempfile.TemporaryDirectory() as folder:
        for picture in draw_study(study, Path(folder)):
            client.log_artifact(run_id, str(picture), "pictures")


def importances(study: Study) -> dict[str, float]:
    """Return what share of the scores' variance each parameter explains, largest first; empty for too few trials.

    Of completed trials by functional ANOVA (Hutter et al. 2014), for the mean IoU.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    index = iou_index(study)
    shared = set.intersection(*(set(one.params) for one in complete)) if complete else set()
    varied = [name for name in shared if len({str(one.params[name]) for one in complete}) > 1]
    if len(complete) < 4 or not varied or len({one.values[index] for one in complete}) < 2:
        return {}
    target = None if len(study.directions) == 1 else lambda one: one.values[index]
    found = get_param_importances(
        study, evaluator=FanovaImportanceEvaluator(seed=0), params=sorted(varied), target=target
    )
    return {name: float(value) for name, value in found.items()}


def draw_study(study: Study, folder: Path) -> list[Path]:
    """Draw history, curves, importance, slices, parallel coordinates or the Pareto front; returns the pictures."""
    index = iou_index(study)
    many = len(study.directions) > 1
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return []
    named: dict[str, Any] = {"target_name": "mean IoU, validation"}
    if many:
        named["target"] = lambda one: one.values[index]
    params = sorted({name for one in complete for name in one.params})
    drawn: dict[str, Callable[[], Any]] = {"history": lambda: plots.plot_optimization_history(study, **named)}
    if not many:
        drawn["curves"] = lambda: plots.plot_intermediate_values(study)
    if importances(study):
        drawn["importance"] = lambda: plots.plot_param_importances(
            study, evaluator=FanovaImportanceEvaluator(seed=0), **named
        )
    if len(complete) > 1:
        drawn["slice"] = lambda: plots.plot_slice(study, params=params, **named)
        drawn["parallel_coordinate"] = lambda: plots.plot_parallel_coordinate(study, params=params, **named)
    if 2 <= len(study.directions) <= 3:
        drawn["pareto_front"] = lambda: plots.plot_pareto_front(study, target_names=study.metric_names)
    pictures = []
    for name, draw in drawn.items():
        path = folder / f"{name}.png"
        _save(draw, path)
        pictures.append(path)
    return pictures


def _save(draw: Callable[[], Any], path: Path) -> None:
    """Draw by Optuna, which draws on pyplot's current figure, and save without showing anything."""
    from matplotlib import pyplot as plt

    with mpl.rc_context({"backend": "agg"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna says of each plot that it is experimental
        optuna_axes = draw()
        first = np.ravel(np.asarray(optuna_axes, dtype=object))[0]
        figure = first.figure if isinstance(first, Axes) else plt.gcf()
        if isinstance(figure, Figure):
            figure.set_size_inches(12, 6.5)
            for axes in figure.axes:
                if path.stem == "slice":  # names of encoders would run into each other
                    axes.tick_params(axis="x", labelrotation=75)
                if path.stem == "curves":
                    axes.set(xlabel="epoch", ylabel="mean IoU, validation", title="trials, epoch by epoch")
            figure.savefig(path, dpi=110, bbox_inches="tight")
        plt.close("all")


def _runs_of(study_id: str, experiment_id: str) -> list[str]:
    found = MlflowClient().search_runs([experiment_id], f"tags.`{STUDY_TAG}` = '{study_id}'")
    return [one.info.run_id for one in sorted(found, key=lambda one: (one.info.start_time, one.info.run_id))]
