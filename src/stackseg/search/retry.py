"""What is done about a trial whose worker has died."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from stackseg.search.progress import taken_up
from stackseg.search.study import RUN_ID, WORKER
from stackseg.search.trial_runs import close_trial_run, trial_folder
from stackseg.tracking.run_logger import find_run


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
        shutil.rmtree(trial_folder(checkpoints, trial.number), ignore_errors=True)
        run_id = trial.user_attrs.get(RUN_ID)
        run = None if run_id is None else find_run(run_id)
        if run is not None:
            below = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}' and attributes.status = 'RUNNING'"
            for one in (run, *MlflowClient().search_runs([run.info.experiment_id], below)):  # folds have runs below it
                close_trial_run(one.info.run_id, "stale", "its worker died")

    return retry_and_close


def end_trials_of(worker: str, study: Study, on_stale: Callable[[Study, FrozenTrial], None]) -> None:
    """Fail the trial of a worker that is known to be dead, and have it made once more: no heartbeat need be waited for.

    Parameters
    ----------
    worker
        Its name, as its trials have it.
    study
        The study it made trials of.
    on_stale
        See `stale_callback`.
    """
    for one in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if one.user_attrs.get(WORKER) == worker:
            try:
                study.tell(one.number, state=TrialState.FAIL)
            except (ValueError, UpdateFinishedTrialError):  # others have found it out at the same moment
                continue
            on_stale(study, study.trials[one.number])
