"""How far a study is, and that no trial of it is lost: what was interrupted is queued again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

# attributes of a trial: why it failed, or which one it makes once more
FAILURE, AGAIN = "failure", "again"
# and what the one before met that may, or may not, have been its own fault
MET = "met"


@dataclass(frozen=True)
class Standing:
    """How far a study is: trials that count as finished by how they ended, and those at work."""

    num_complete: int
    num_pruned: int
    num_failed: int
    num_running: int

    @property
    def num_finished(self) -> int:
        """Trials that are done with; interrupted ones, and ones that another worker took up, are not among them."""
        return self.num_complete + self.num_pruned + self.num_failed


def standing_of(trials: Sequence[FrozenTrial]) -> Standing:
    """Count trials by how they ended; failed are those that failed for a reason of their own."""
    states = [one.state for one in trials]
    again = taken_up(trials)
    failed = [one for one in trials if one.state == TrialState.FAIL and one.number not in again]
    return Standing(
        num_complete=states.count(TrialState.COMPLETE),
        num_pruned=states.count(TrialState.PRUNED),
        # a trial that has cost two workers their lives is not tried a third time
        num_failed=sum(FAILURE in one.user_attrs or "retry_history" in one.system_attrs for one in failed),
        num_running=states.count(TrialState.RUNNING),
    )


def hand_back(study: Study, number: int, params: Mapping[str, Any], error: str | None = None) -> None:
    """Queue the params of a trial that was interrupted, or met an error, so that nothing of the study is lost."""
    if params:
        study.enqueue_trial(dict(params), user_attrs={AGAIN: number} | ({} if error is None else {MET: error}))


def hand_back_lost(study: Study) -> None:
    """Queue what was interrupted and could not be handed back then, as on a full disk."""
    trials = study.get_trials(deepcopy=False)
    again = taken_up(trials)
    for one in trials:
        given_up = FAILURE in one.user_attrs or "retry_history" in one.system_attrs
        if one.state == TrialState.FAIL and one.number not in again and not given_up:
            # it may have been queued, and have ended before it chose anything
            hand_back(study, one.number, one.params or one.system_attrs.get("fixed_params", {}))


def retried(trials: Sequence[FrozenTrial]) -> set[int]:
    """Return the numbers of the trials whose workers died, and which others make, or made, once more."""
    return {number for one in trials for number in one.system_attrs.get("retry_history", [])}


def taken_up(trials: Sequence[FrozenTrial]) -> set[int]:
    """Return the numbers of the trials that others make, or made, once more."""
    return retried(trials) | {one.user_attrs[AGAIN] for one in trials if AGAIN in one.user_attrs}
