"""Register the version that belongs to a bundle, once, with its scores and its lineage."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from stackseg.dataset.records import Catalog
from stackseg.errors import DataError
from stackseg.evaluation.evaluate import Evaluation
from stackseg.evaluation.report import score_metrics
from stackseg.model.bundle import BundleSpec
from stackseg.registry.description import scores_markdown, update_descriptions
from stackseg.registry.versions import CHALLENGER, read_registered_model
from stackseg.tracking.descriptions import describe_scores, figure
from stackseg.tracking.keys import accepted_keys
from stackseg.tracking.lineage import GitState, git_state, run_name
from stackseg.tracking.run_logger import (
    RunRecord,
    dataset_of,
    find_run,
    lineage_tags,
    log_metrics,
    parent_tags,
    read_run,
    reopened,
)
from stackseg.tracking.store_errors import store_lock


@dataclass(frozen=True)
class Registration:
    """What registering came to; `run_id` is not the trainer's where the store does not know that run."""

    name: str
    version: str
    created: bool
    run_id: str
    trained_by: str


def register(
    spec: BundleSpec,
    evaluation: Evaluation,
    catalog: Catalog,
    *,
    data: Path,
    out: Path,
    experiment_id: str,
    model_name: str,
    lock: Path,
    log_model: Callable[[], Any],
) -> Registration:
    """Add scores, pictures and the model to the run that trained, and register the version if there is none yet.

    A version is known by its bundle, catalogue and code digests; registering it again adds the run to its tags.

    Parameters
    ----------
    data, out
        Folder of the specimens, for the data set's source, and folder with run.json, plots/ and overlays/.
    experiment_id, model_name
        Where a run is opened if the training's own is gone, and the registered model.
    lock
        File by which one of several processes of this machine makes the version, and the others find it.
    log_model
        Logs the model to the active run and returns MLflow's ModelInfo.

    Raises
    ------
    DataError
        There is no run.json, or scores, bundle and catalogue do not belong together.
    """
    record = read_run(out / "run.json")
    _check_belongings(spec, evaluation, record, catalog)
    test = dataset_of(catalog, data, evaluation.part)
    description = scores_markdown(spec, evaluation, catalog)
    with store_lock(lock):
        run_id = _run_of(record, spec, experiment_id)
        version = version_of_bundle(model_name, spec)
        _remove_half_logged(run_id)
        with reopened(run_id):
            if not _has_input(run_id, evaluation.part):
                mlflow.log_input(test, context=evaluation.part)
            _log_pictures([one for folder in ("plots", "overlays") for one in sorted((out / folder).glob("*.png"))])
            mlflow.log_dict(evaluation.model_dump(mode="json"), "evaluation.json")
            logged = None if version is not None else str(log_model().model_id)
        created = False
        if version is None:
            tags = version_tags(spec, evaluation) | {"run_ids": run_id}
            version, created = _create_version(model_name, spec, str(logged), run_id, tags, description)
        number = str(version.version)
        # once for the run's own table, and on the model of it
        log_metrics(run_id, score_metrics(evaluation), model_id=model_id_of(version), dataset=test)
        describe_scores(run_id, evaluation)
        runs = [one for one in version.tags.get("run_ids", "").split(",") if one]
        if run_id not in runs:
            MlflowClient().set_model_version_tag(model_name, number, "run_ids", ",".join([*runs, run_id]))
        if not version.description:  # a new one, or one of an older release
            MlflowClient().update_model_version(model_name, number, description)
        update_descriptions(read_registered_model(model_name), number)
    return Registration(model_name, number, created, run_id, record.run_id)


def _create_version(
    model_name: str, spec: BundleSpec, model_id: str, run_id: str, tags: dict[str, str], description: str
) -> tuple[ModelVersion, bool]:
    """Create the version and return it; or the one that another machine made of the bundle at the same time."""
    client = MlflowClient()
    try:
        client.create_registered_model(model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    created = client.create_model_version(
        model_name, f"models:/{model_id}", run_id=run_id, tags=tags, model_id=model_id
    )
    # the lock keeps processes of one machine apart only
    kept = version_of_bundle(model_name, spec) or created
    if kept.version != created.version:
        client.delete_model_version(model_name, created.version)
        client.delete_logged_model(model_id)
        return kept, False
    # the logged model's page links to its versions by this tag
    link = json.dumps([{"name": model_name, "version": created.version}])
    client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: link, MLFLOW_RUN_NOTE: description})
    client.set_registered_model_alias(model_name, CHALLENGER, created.version)
    return kept, True


def _remove_half_logged(run_id: str) -> None:
    """Remove the models of a run that killed processes left unfinished, and their artifacts.

    A model of a run that is running is somebody's who logs it at this moment.
    """
    client = MlflowClient()
    run = client.get_run(run_id)
    if run.info.status == "RUNNING":
        return
    for model in mlflow.search_logged_models([run.info.experiment_id], output_format="list"):
        if model.source_run_id == run_id and model.status == LoggedModelStatus.PENDING:
            client.delete_logged_model(model.model_id)
            get_artifact_repository(model.artifact_location).delete_artifacts()


def version_of_bundle(model_name: str, spec: BundleSpec) -> ModelVersion | None:
    """Return the registered version of a bundle, the oldest if there are several, or None."""
    wanted = identity(spec).items()
    versions = reversed(read_registered_model(model_name).versions.values())
    return next((one for one in versions if wanted <= one.tags.items()), None)


def model_id_of(version: ModelVersion) -> str:
    """Return the id of the logged model behind a version; a version that was searched for holds it in its source."""
    return str(version.source).removeprefix("models:/")


def identity(spec: BundleSpec) -> dict[str, str]:
    """Return the digests by which a version is known."""
    lineage = spec.lineage
    return {
        "bundle_digest": spec.digest,
        "catalog_digest": lineage.catalog_digest,
        "code_digest": lineage.code_digest,
    }


def version_tags(spec: BundleSpec, evaluation: Evaluation) -> dict[str, str]:
    """Return what a version says of itself in the registry."""
    interval = evaluation.mean_iou_interval
    tags = identity(spec) | {
        "data_md5": spec.lineage.data_md5,
        "git_commit": str(spec.lineage.git_commit),
        "git_dirty": str(spec.lineage.git_dirty).lower(),
        "part": evaluation.part,
        "mean_iou": figure(evaluation.mean_iou),
        "mean_iou_interval": interval.reason or f"{figure(interval.low)}..{figure(interval.high)} ({interval.unit})",
        "validation_mean_iou": figure(spec.validation.mean_iou),
    }
    scores = {f"iou.{one.name}": figure(one.iou) for one in evaluation.scores.classes}
    keys = accepted_keys(scores)
    return tags | parent_tags(spec.lineage.parent) | {keys[name]: score for name, score in scores.items()}


def _check_belongings(spec: BundleSpec, evaluation: Evaluation, record: RunRecord, catalog: Catalog) -> None:
    pairs = (
        ("evaluation.json", evaluation.bundle_digest, spec.digest),
        ("run.json", record.bundle_digest, spec.digest),
        ("evaluation.json", evaluation.catalog_digest, catalog.digest()),
        ("run.json", record.catalog_digest, catalog.digest()),
    )
    for where, found, expected in pairs:
        if found != expected:
            raise DataError(
                f"digest {found[:12]}",
                expected=expected[:12],
                where=where,
                remedy="the outputs are of different runs: `dvc repro` brings them together",
            )


def _run_of(record: RunRecord, spec: BundleSpec, experiment_id: str) -> str:
    if find_run(record.run_id) is not None:
        return record.run_id
    # a fresh clone, or a cache restored after the store was lost
    earlier = MlflowClient().search_runs([experiment_id], f"tags.restored_from = '{record.run_id}'", max_results=1)
    if earlier:
        return str(earlier[0].info.run_id)
    trained_by = GitState(spec.lineage.git_commit, spec.lineage.git_dirty, "", None)
    tags = lineage_tags(git_state(Path.cwd())) | {
        MLFLOW_RUN_NAME: run_name(spec.inference.network, trained_by),
        "restored_from": record.run_id,
        "bundle_digest": spec.digest,
        "data_md5": spec.lineage.data_md5,
        "catalog_digest": spec.lineage.catalog_digest,
    }
    run = MlflowClient().create_run(experiment_id, tags=tags)
    MlflowClient().set_terminated(run.info.run_id)
    return str(run.info.run_id)


def _log_pictures(pictures: Sequence[Path]) -> None:
    """Log pictures under names that every artifact store takes: those of overlays hold a specimen's."""
    keys = accepted_keys([one.name for one in pictures], flags=re.ASCII)
    with tempfile.TemporaryDirectory() as folder:
        for one in pictures:
            shutil.copyfile(one, Path(folder) / keys[one.name])
        mlflow.log_artifacts(folder, "pictures")


def _has_input(run_id: str, context: str) -> bool:
    inputs = MlflowClient().get_run(run_id).inputs
    return inputs is not None and any(tag.value == context for one in inputs.dataset_inputs for tag in one.tags)
