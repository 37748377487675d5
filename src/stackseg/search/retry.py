"""Trials whose workers have died: they are noticed, their runs are closed, and they are queued once more."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from stackseg.search.mlflow_runs import close_trial_run, trial_folder
from stackseg.search.progress import RUN_ID, WORKER, repeated_trials
from stackseg.search.storage import GRACE
from stackseg.search.study import fail_stale_trials
from stackseg.tracking.run_logger import find_run

# a machine that is only busy may look as late as this
_BUSY_S = 10


def stale_callback(checkpoints: Path) -> Callable[[Study, FrozenTrial], None]:
    """Return what is called for a trial whose worker has died: it closes the run, and queues the trial once more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        retry = RetryHeartbeatStaleTrialCallback(max_retry=1)

    def retry_and_close(study: Study, trial: FrozenTrial) -> None:
        if trial.number not in repeated_trials(study.get_trials(deepcopy=False)):
            # what the pruner recorded of this trial is not the next one's
            kept = {key: value for key, value in trial.system_attrs.items() if not key.startswith("completed_rung_")}
            trial.system_attrs = kept
            retry(study, trial)
        shutil.rmtree(trial_folder(checkpoints, trial.number), ignore_errors=True)
        run_id = trial.user_attrs.get(RUN_ID)
        run = None if run_id is None else find_run(run_id)
        if run is not None:
            below = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}' and attributes.status = 'RUNNING'"
            for one in (run, *MlflowClient().search_runs([run.info.experiment_id], below)):  # folds have runs below it
                close_trial_run(one.info.run_id, "stale", "its worker died")

    return retry_and_close


def fail_trials_of(worker: str, study: Study, on_stale: Callable[[Study, FrozenTrial], None]) -> None:
    """Fail the trial of a worker that is known to be dead, without waiting for its heartbeat to be missed.

    Parameters
    ----------
    worker
        Its name, as its trials record it.
    study
        Its study.
    on_stale
        See `stale_callback`.
    """
    for one in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if one.user_attrs.get(WORKER) == worker:
            try:
                study.tell(one.number, state=TrialState.FAIL)
            except (ValueError, UpdateFinishedTrialError):  # others noticed it at the same moment
                continue
            on_stale(study, study.trials[one.number])


class StaleWatch:
    """Fails stale trials, but not just after this machine slept: then its own workers seem to have been silent.

    Parameters
    ----------
    study
        The study to be watched.
    heartbeat
        Seconds between a worker's signs of life; `GRACE` of them without one make a trial stale.
    """

    def __init__(self, study: Study, heartbeat: int) -> None:
        self._study = study
        self._grace = GRACE * heartbeat
        self._last_look = time.time()
        self._awake_since = self._last_look - self._grace

    def look(self) -> None:
        """Fail the trials of dead workers, their own search's or another's; to be called about once a second."""
        now = time.time()
        # after a shorter sleep, and a heartbeat's pause on either side, nobody has been silent for too long
        if abs(now - self._last_look) > max(self._grace / 2, _BUSY_S):
            self._awake_since = now
        self._last_look = now
        if now - self._awake_since >= self._grace:
            fail_stale_trials(self._study)
