"""How far a study is, and that no trial of it is lost: what was interrupted is queued again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

# attributes of a trial
RUN_ID, FOLD_SCORES, WORKER = "run_id", "fold_scores", "worker"
# why it failed, which trial it repeats, and the error that ended that one
FAILURE, REPEATS, EARLIER_ERROR = "failure", "again", "met"


@dataclass(frozen=True)
class StudyProgress:
    """Trials of a study that count as finished, by how they ended, and those that are running."""

    num_complete: int
    num_pruned: int
    num_failed: int
    num_running: int

    @property
    def num_finished(self) -> int:
        """Complete, pruned and failed trials; interrupted and repeated ones are not among them."""
        return self.num_complete + self.num_pruned + self.num_failed


def progress_of(trials: Sequence[FrozenTrial]) -> StudyProgress:
    """Count trials by how they ended; failed are those that failed for a reason of their own."""
    states = [one.state for one in trials]
    repeated = repeated_trials(trials)
    return StudyProgress(
        num_complete=states.count(TrialState.COMPLETE),
        num_pruned=states.count(TrialState.PRUNED),
        num_failed=sum(_has_failed(one) for one in trials if one.number not in repeated),
        num_running=states.count(TrialState.RUNNING),
    )


def requeue(study: Study, number: int, params: Mapping[str, Any], error: str | None = None) -> None:
    """Queue the params of an interrupted trial, with the error that may, or may not, have been its own fault."""
    if params:
        study.enqueue_trial(
            dict(params), user_attrs={REPEATS: number} | ({} if error is None else {EARLIER_ERROR: error})
        )


def requeue_interrupted(study: Study) -> None:
    """Queue trials that were interrupted and could not be queued then, as on a full disk."""
    trials = study.get_trials(deepcopy=False)
    repeated = repeated_trials(trials)
    for one in trials:
        if one.state == TrialState.FAIL and one.number not in repeated and not _has_failed(one):
            # a queued trial may have ended before it chose anything
            requeue(study, one.number, one.params or one.system_attrs.get("fixed_params", {}))


def retried_trials(trials: Sequence[FrozenTrial]) -> set[int]:
    """Return the numbers of the trials whose workers died, and which were queued again."""
    return {number for one in trials for number in one.system_attrs.get("retry_history", [])}


def repeated_trials(trials: Sequence[FrozenTrial]) -> set[int]:
    """Return the numbers of all trials that were queued again, for whatever reason."""
    return retried_trials(trials) | {one.user_attrs[REPEATS] for one in trials if REPEATS in one.user_attrs}


def _has_failed(trial: FrozenTrial) -> bool:
    """Return whether a trial failed for a reason of its own, or cost two workers their lives: it is not repeated."""
    given_up = FAILURE in trial.user_attrs or "retry_history" in trial.system_attrs
    return trial.state == TrialState.FAIL and given_up
