"""How far a study is: each trial counted once, and as what it is."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import Trial, TrialState, create_trial

from stackseg.search.progress import FAILURE, StudyProgress, progress_of, requeue_interrupted


class TestProgress:
    def test_each_end_counts_as_what_it_is(self) -> None:
        study = optuna.create_study()
        ends: list[tuple[TrialState, dict[str, Any]]] = [
            (TrialState.COMPLETE, {}),
            (TrialState.COMPLETE, {}),
            (TrialState.PRUNED, {}),
            (TrialState.FAIL, {FAILURE: "out of memory"}),
            (TrialState.FAIL, {}),
            (TrialState.FAIL, {}),
        ]
        for state, attributes in ends:
            value = 0.5 if state == TrialState.COMPLETE else None
            study.add_trial(create_trial(state=state, value=value, user_attrs=attributes))
        study.ask()
        study.enqueue_trial({})
        standing = progress_of(study.trials)
        assert standing == StudyProgress(num_complete=2, num_pruned=1, num_failed=1, num_running=1)
        assert standing.num_finished == 4

    @pytest.mark.filterwarnings("ignore:RetryHeartbeatStaleTrialCallback is experimental")
    def test_a_trial_that_was_taken_up_counts_once(self) -> None:
        retry, study = RetryHeartbeatStaleTrialCallback(max_retry=1), optuna.create_study()

        def dies(one: Trial) -> None:
            study.tell(one, state=TrialState.FAIL)
            retry(study, study.trials[one.number])

        dies(study.ask())
        assert progress_of(study.trials) == StudyProgress(0, 0, 0, 0)
        again = study.ask()
        assert progress_of(study.trials) == StudyProgress(0, 0, 0, 1)
        dies(again)
        # nobody takes it up a second time
        assert len(study.trials) == 2
        assert progress_of(study.trials) == StudyProgress(0, 0, 1, 0)

    @pytest.mark.filterwarnings("ignore:RetryHeartbeatStaleTrialCallback is experimental")
    def test_one_that_was_taken_up_and_completed_has_not_failed(self) -> None:
        study = optuna.create_study()
        study.tell(study.ask(), state=TrialState.FAIL)
        RetryHeartbeatStaleTrialCallback(max_retry=1)(study, study.trials[0])
        study.tell(study.ask(), 0.5)
        assert progress_of(study.trials) == StudyProgress(1, 0, 0, 0)

    def test_what_was_lost_is_handed_back_once(self) -> None:
        study = optuna.create_study()
        for attributes in ({}, {FAILURE: "out of memory"}):
            trial = study.ask()
            trial.suggest_float("x", 0, 1)
            for name, value in attributes.items():
                trial.set_user_attr(name, value)
            study.tell(trial, state=TrialState.FAIL)
        for _ in range(2):
            requeue_interrupted(study)
            assert [one.number for one in study.trials if one.state == TrialState.WAITING] == [2]
        assert study.ask().suggest_float("x", 0, 1) == study.trials[0].params["x"]

    def test_what_was_queued_and_lost_before_it_chose_anything_is_handed_back(self) -> None:
        study = optuna.create_study()
        study.enqueue_trial({"x": 0.25})
        study.tell(study.ask(), state=TrialState.FAIL)
        for _ in range(2):
            requeue_interrupted(study)
            assert [one.number for one in study.trials if one.state == TrialState.WAITING] == [1]
        assert study.ask().suggest_float("x", 0, 1) == 0.25

    def test_nothing_yet(self) -> None:
        assert progress_of([]).num_finished == 0
