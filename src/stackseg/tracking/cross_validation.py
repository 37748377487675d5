"""k-fold training: one run per fold under a parent, and scores pooled from the folds' counts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from stackseg.catalog.build import fold_catalog
from stackseg.dataset.records import Catalog
from stackseg.evaluation.evaluate import Evaluation, PlaneCounts, count_planes, summarise
from stackseg.evaluation.report import score_metrics
from stackseg.model.bundle import load_bundle
from stackseg.model.confusion import mean_iou
from stackseg.model.devices import pick_device
from stackseg.params import Params
from stackseg.tracking.descriptions import describe_run, score_table
from stackseg.tracking.lineage import git_state, run_name
from stackseg.tracking.logged_training import train_and_log
from stackseg.tracking.run_logger import lineage_tags, log_metrics, read_run, remove_checkpoints_of
from stackseg.training.parent import Parent, check_parent
from stackseg.training.train import Callback, Machine


@dataclass(frozen=True)
class FoldResult:
    """One fold: its number, validation planes, mean IoU on them, and bundle."""

    fold: int
    num_planes: int
    mean_iou: float | None
    digest: str


@dataclass(frozen=True)
class PooledFolds:
    """All folds, and the evaluation of their validation planes together."""

    folds: tuple[FoldResult, ...]
    evaluation: Evaluation


def train_all_folds(
    params: Params,
    catalog: Catalog,
    *,
    data: Path,
    out: Path,
    num_folds: int,
    checkpoints: Path,
    experiment_id: str,
    machine: Machine,
    parent: Parent | None = None,
    callbacks: Sequence[Callback],
    on_fold: Callable[[int], None],
) -> PooledFolds | None:
    """Train each fold on the planes outside its validation part; the test part of the catalogue stays unread.

    Every plane outside the test part validates once, so the pooled counts cover them all. Returns None on all
    processes but the first.
    """
    check_parent(parent, params, catalog, folds=num_folds)
    client = MlflowClient()
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    parent_run = ""
    if is_first:
        git = git_state(Path.cwd())
        tags = lineage_tags(git) | {MLFLOW_RUN_NAME: f"{num_folds} folds · {run_name(params.model, git)}"}
        parent_run = client.create_run(experiment_id, tags=tags).info.run_id
    counted: list[PlaneCounts] = []
    results: list[FoldResult] = []
    device = precision = ""
    try:
        for fold in range(num_folds):
            on_fold(fold)
            fold_params = params.override({"split.folds": num_folds, "split.fold": fold})
            of_fold = fold_catalog(catalog, data, fold=fold, folds=num_folds)
            result = train_and_log(
                fold_params,
                of_fold,
                data=data,
                out=out / str(fold),
                checkpoints=checkpoints,
                experiment_id=experiment_id,
                machine=machine,
                parent=parent,
                callbacks=callbacks,
                tags={MLFLOW_PARENT_RUN_ID: parent_run, MLFLOW_RUN_NAME: f"fold {fold}", "fold": str(fold)},
            )
            if result is None:
                continue
            bundle = load_bundle(out / str(fold) / "model", pick_device(machine.device))
            planes = count_planes(bundle, of_fold, data, params.evaluate, part="validation")
            counted.extend(planes)
            score = mean_iou(np.sum([one.counts_cc for one in planes], axis=0))
            results.append(FoldResult(fold, len(planes), score, bundle.digest))
            device, precision = result.spec.validation.device, result.spec.validation.precision
    except BaseException:
        if is_first:
            client.set_terminated(parent_run, "FAILED")
        raise
    if not counted:
        return None
    evaluation = summarise(
        counted,
        catalog,
        params.evaluate,
        part="validation",
        bundle_digest=",".join(one.digest for one in results),
        device=device,
        precision=precision,
        seed=params.seed,
    )
    (out / "evaluation.json").write_text(evaluation.model_dump_json(indent=1) + "\n", encoding="utf-8")
    log_metrics(parent_run, {f"pooled_{key}": value for key, value in score_metrics(evaluation).items()})
    describe_run(parent_run, f"Validation scores pooled over {num_folds} folds", score_table(evaluation))
    client.set_terminated(parent_run)
    for fold in range(num_folds):
        remove_checkpoints_of(read_run(out / str(fold) / "run.json").run_id, checkpoints)
    return PooledFolds(tuple(results), evaluation)
