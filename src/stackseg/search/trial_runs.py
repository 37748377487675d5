"""A trial's own MLflow run, under that of the study, and the folder of its name."""

from __future__ import annotations

import time
from pathlib import Path

from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME
from optuna.trial import Trial

from stackseg.search.study import RUN_ID
from stackseg.tracking.run_logger import MAX_TAG, log_metrics


def trial_folder(folder: Path, number: int) -> Path:
    """Return where a trial's bundle, or its checkpoints, are."""
    return folder / f"trial-{number:04d}"


def trial_tags(number: int, name: str, parent: str) -> dict[str, str]:
    """Return the tags of the run of a trial, or of one of its folds, under the run `parent`."""
    return {MLFLOW_PARENT_RUN_ID: parent, MLFLOW_RUN_NAME: name, "trial": str(number)}


def open_trial_run(trial: Trial, experiment_id: str, parent_run: str) -> str:
    """Open a run of the trial's own, with what it chose."""
    client = MlflowClient()
    tags = trial_tags(trial.number, f"trial {trial.number}", parent_run)
    run_id: str = client.create_run(experiment_id, tags=tags).info.run_id
    trial.set_user_attr(RUN_ID, run_id)
    for key, value in trial.params.items():
        client.log_param(run_id, key, value)
    return run_id


def end_trial_run(trial: Trial, state: str, started: float, message: str = "") -> None:
    """Close the trial's run, if one was opened, and say how long it took.

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
    if run_id is None:
        return
    close_trial_run(run_id, state, message)
    log_metrics(run_id, {"trial/seconds": time.perf_counter() - started})


def close_trial_run(run_id: str, state: str, message: str) -> None:
    """End a run, and tag how its trial ended, and why."""
    client = MlflowClient()
    # first of all: on a disk that is full the rest may fail
    client.set_terminated(run_id, {"complete": "FINISHED", "failed": "FAILED"}.get(state, "KILLED"))
    client.set_tag(run_id, "trial.state", state)
    if message:
        client.set_tag(run_id, "failure", message[:MAX_TAG])
