"""What a training reports to the pruner, and when it is ended."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.pruners import SuccessiveHalvingPruner, ThresholdPruner
from optuna.trial import Trial, TrialState

from stackseg.search.pruning_callback import PruningCallback, TrialTakenOver
from stackseg.training.callbacks import EpochReport, TrainingStart, TrainingStopped


def asked(pruner: optuna.pruners.BasePruner) -> Trial:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(direction="maximize", pruner=pruner).ask()


def follow(trial: Trial, num_epochs: int, max_epochs: int, *, may_prune: bool = True) -> None:
    """Report epochs as a training does."""
    callback = PruningCallback(trial, max_epochs, lambda: False)
    callback.reports, callback.may_prune = True, may_prune
    callback.on_start(TrainingStart(num_epochs, 1, 0, "cpu", "fp32", 1, Path(), ()))
    for epoch in range(num_epochs):
        callback.on_epoch(EpochReport(epoch, 0.1, 0.9, 1e-3, 1.0, 1.0, validation_mean_iou=0.5))


def steps_of(trial: Trial) -> list[int]:
    return sorted(trial.study.trials[0].intermediate_values)


@pytest.mark.parametrize(("num_epochs", "steps"), [(4, [2, 4, 6, 8]), (8, list(range(1, 9))), (2, [4, 8])])
def test_trainings_of_any_length_are_compared_at_the_same_share(num_epochs: int, steps: list[int]) -> None:
    trial = asked(optuna.pruners.NopPruner())
    follow(trial, num_epochs, 8)
    assert steps_of(trial) == steps


def test_a_poor_training_is_ended_but_not_in_its_last_epoch() -> None:
    trial = asked(ThresholdPruner(lower=1.0))
    with pytest.raises(TrainingStopped, match="pruned at epoch 1"):
        follow(trial, 3, 3)
    trial = asked(ThresholdPruner(lower=1.0, n_warmup_steps=3))
    follow(trial, 3, 3)
    assert steps_of(trial) == [1, 2, 3]
    # its second look would be at epoch 4
    trial = asked(SuccessiveHalvingPruner(min_resource=1, reduction_factor=4))
    follow(trial, 4, 4)
    assert "completed_rung_1" not in trial.study.trials[0].system_attrs


def test_the_present_params_are_reported_and_not_ended() -> None:
    trial = asked(ThresholdPruner(lower=1.0))
    follow(trial, 3, 3, may_prune=False)
    assert steps_of(trial) == [1, 2, 3]


def test_a_trial_that_others_have_ended_is_left_to_them() -> None:
    trial = asked(optuna.pruners.NopPruner())
    trial.study.tell(trial.number, state=TrialState.FAIL)
    with pytest.raises(TrialTakenOver):
        follow(trial, 3, 3)


def test_a_worker_that_is_told_to_end_ends_after_a_step() -> None:
    callback = PruningCallback(asked(optuna.pruners.NopPruner()), 3, lambda: True)
    with pytest.raises(KeyboardInterrupt):
        callback.on_step(0, 0, None)  # type: ignore[arg-type]
