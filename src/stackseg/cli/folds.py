"""train --folds: train every fold and pool the validation scores."""

from __future__ import annotations

from pathlib import Path

from stackseg.cli.console import figure, next_step, say, table
from stackseg.cli.project import checkpoints_folder, ready_store
from stackseg.cli.stages import ShownTraining, show_scores
from stackseg.params import Params
from stackseg.tracking.cross_validation import FoldResult, train_all_folds
from stackseg.training.train import Machine


def train_folds(params: Params, data: Path, out: Path, folds: int, machine: Machine) -> None:
    """Train the folds one after another, logged as children of one run, and show the pooled scores."""
    root, experiment_id = ready_store(params)

    def heading(fold: int) -> None:
        say(f"fold {fold + 1} of {folds}")

    with ShownTraining() as shown:
        pooled = train_all_folds(
            params,
            data=data,
            out=out / "folds",
            num_folds=folds,
            checkpoints=checkpoints_folder(root),
            experiment_id=experiment_id,
            machine=machine,
            callbacks=[shown],
            on_fold=heading,
        )
    if pooled is None:
        return
    table("folds", ("fold", "planes", "mean IoU", "bundle"), [_row(one) for one in pooled.folds])
    show_scores(pooled.evaluation)
    say(f"pooled over {folds} folds: mean IoU {figure(pooled.evaluation.mean_iou)}; {out / 'folds'} holds the bundles")
    next_step("dvc repro, to train on the whole training part and score it on the test part")


def _row(one: FoldResult) -> tuple[object, ...]:
    return one.fold, one.num_planes, one.mean_iou, one.digest[:12]
