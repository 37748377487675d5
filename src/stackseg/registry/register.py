"""Register the version that belongs to a bundle, once, with its scores and its lineage."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS, MLFLOW_RUN_NAME

from stackseg.dataset.records import Catalog
from stackseg.errors import DataError
from stackseg.evaluation.evaluate import Evaluation
from stackseg.evaluation.report import score_metrics
from stackseg.model.bundle import BundleSpec
from stackseg.registry.versions import CHALLENGER
from stackseg.tracking.descriptions import describe_scores
from stackseg.tracking.lineage import GitState, run_name
from stackseg.tracking.run_logger import RunRecord, dataset_of, find_run, lineage_tags, log_metrics, reopened

# the digests that make a version what it is
IDENTITY = ("bundle_digest", "catalog_digest", "code_digest")


@dataclass(frozen=True)
class Registration:
    """What registering came to."""

    name: str
    version: str
    created: bool
    run_id: str
    run_reopened: bool


def register(
    spec: BundleSpec,
    evaluation: Evaluation,
    record: RunRecord,
    catalog: Catalog,
    *,
    data: Path,
    pictures: list[Path],
    experiment_id: str,
    model_name: str,
    git: GitState,
    log_model: Callable[[], Any],
) -> Registration:
    """Add scores, pictures and the model to the run that trained, and register the version if there is none yet.

    A version is known by its bundle, catalogue and code digests; registering it again adds the run to its tags.

    Parameters
    ----------
    spec, evaluation, record, catalog
        What the stages wrote.
    data
        Folder of the specimens, for the data set's source.
    pictures
        Files to log under ``pictures/``.
    experiment_id, model_name
        Where the run is looked for or opened, and the registered model.
    git
        Lineage of a run that has to be opened because the training's own is gone.
    log_model
        Logs the model to the active run and returns MLflow's ModelInfo.

    Raises
    ------
    DataError
        Scores, bundle and catalogue do not belong together.
    """
    _check_belongings(spec, evaluation, record, catalog)
    run_id, opened = _run_of(record, spec, experiment_id, git)
    version = find_version(model_name, spec)
    client = MlflowClient()
    test = dataset_of(catalog, data, evaluation.part)
    with reopened(run_id):
        if not _has_input(run_id, evaluation.part):
            mlflow.log_input(test, context=evaluation.part)
        for picture in pictures:
            mlflow.log_artifact(str(picture), "pictures")
        mlflow.log_dict(evaluation.model_dump(mode="json"), "scores.json")
        model_id = model_id_of(version) if version is not None else str(log_model().model_id)
    # once for the run's own table, and on the model of it
    log_metrics(run_id, score_metrics(evaluation), model_id=model_id, dataset=test)
    describe_scores(run_id, model_id, evaluation)
    if version is not None:
        runs = [one for one in version.tags.get("run_ids", "").split(",") if one]
        if run_id not in runs:
            client.set_model_version_tag(model_name, version.version, "run_ids", ",".join([*runs, run_id]))
        return Registration(model_name, str(version.version), False, run_id, opened)
    tags = version_tags(spec, evaluation) | {"run_ids": run_id}
    created = _create_version(client, model_name, model_id, run_id, tags)
    return Registration(model_name, str(created.version), True, run_id, opened)


def _create_version(
    client: MlflowClient, model_name: str, model_id: str, run_id: str, tags: dict[str, str]
) -> ModelVersion:
    try:
        client.create_registered_model(model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    created = client.create_model_version(
        model_name, f"models:/{model_id}", run_id=run_id, tags=tags, model_id=model_id
    )
    # the logged model's page links to its versions by this tag
    link = json.dumps([{"name": model_name, "version": created.version}])
    client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: link})
    client.set_registered_model_alias(model_name, CHALLENGER, created.version)
    return created


def find_version(model_name: str, spec: BundleSpec) -> ModelVersion | None:
    """Return the registered version of a bundle, or None."""
    wanted = identity(spec)
    try:
        versions = MlflowClient().search_model_versions(f"name='{model_name}'")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    same = [one for one in versions if all(one.tags.get(key) == value for key, value in wanted.items())]
    return min(same, key=lambda one: int(one.version)) if same else None


def model_id_of(version: ModelVersion) -> str:
    """Return the id of the logged model behind a version; a version that was searched for holds it in its source."""
    return str(version.source).removeprefix("models:/")


def identity(spec: BundleSpec) -> dict[str, str]:
    """Return the digests by which a version is known."""
    values = (spec.digest, spec.lineage.catalog_digest, spec.lineage.code_digest)
    return dict(zip(IDENTITY, values, strict=True))


def version_tags(spec: BundleSpec, evaluation: Evaluation) -> dict[str, str]:
    """Return what a version says of itself in the registry."""
    interval = evaluation.mean_iou_interval
    tags = identity(spec) | {
        "data_md5": spec.lineage.data_md5,
        "git_commit": str(spec.lineage.git_commit),
        "git_dirty": str(spec.lineage.git_dirty).lower(),
        "part": evaluation.part,
        "mean_iou": _figure(evaluation.mean_iou),
        "mean_iou_interval": interval.reason or f"{_figure(interval.low)}..{_figure(interval.high)} ({interval.unit})",
        "validation_mean_iou": _figure(spec.validation.mean_iou),
    }
    return tags | {f"iou.{one.name}": _figure(one.iou) for one in evaluation.scores.classes}


def _figure(value: float | None) -> str:
    return "null" if value is None else f"{value:.4f}"


def _check_belongings(spec: BundleSpec, evaluation: Evaluation, record: RunRecord, catalog: Catalog) -> None:
    pairs = (
        ("scores.json", evaluation.bundle_digest, spec.digest),
        ("run.json", record.bundle_digest, spec.digest),
        ("scores.json", evaluation.catalog_digest, catalog.digest()),
        ("the model", spec.lineage.catalog_digest, catalog.digest()),
    )
    for where, found, expected in pairs:
        if found != expected:
            raise DataError(
                f"digest {found[:12]}",
                expected=expected[:12],
                where=where,
                remedy="the outputs are of different runs: `dvc repro` brings them together",
            )


def _run_of(record: RunRecord, spec: BundleSpec, experiment_id: str, git: GitState) -> tuple[str, bool]:
    if find_run(record.run_id) is not None:
        return record.run_id, False
    # a fresh clone, or a cache restored after the store was lost
    earlier = MlflowClient().search_runs([experiment_id], f"tags.restored_from = '{record.run_id}'", max_results=1)
    if earlier:
        return earlier[0].info.run_id, True
    trained_by = GitState(spec.lineage.git_commit, spec.lineage.git_dirty, "", None)
    tags = lineage_tags(git) | {
        MLFLOW_RUN_NAME: run_name(spec.inference.network, trained_by),
        "restored_from": record.run_id,
        "bundle_digest": spec.digest,
        "data_md5": spec.lineage.data_md5,
        "catalog_digest": spec.lineage.catalog_digest,
    }
    run = MlflowClient().create_run(experiment_id, tags=tags)
    MlflowClient().set_terminated(run.info.run_id)
    return run.info.run_id, True


def _has_input(run_id: str, context: str) -> bool:
    inputs = MlflowClient().get_run(run_id).inputs
    return inputs is not None and any(tag.value == context for one in inputs.dataset_inputs for tag in one.tags)
