"""Find and remove what nothing points to: versions without an alias, their artifacts, stale checkpoints."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from stackseg.registry.register import model_id_of
from stackseg.registry.versions import RegisteredModel

SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Prunable:
    """What could go: versions with their artifact locations, and checkpoint folders."""

    versions: tuple[ModelVersion, ...]
    checkpoints: tuple[Path, ...]


def find_prunable(known: RegisteredModel, checkpoints: Path, *, keep: int, older_than_days: float) -> Prunable:
    """Return what could be removed.

    Parameters
    ----------
    known
        Registered model; its versions without an alias are candidates.
    checkpoints
        Folder of the checkpoints of interrupted trainings.
    keep
        Newest versions without an alias that stay.
    older_than_days
        Age from which a checkpoint is stale.
    """
    free = [one for number, one in known.versions.items() if not known.aliases_of(number)]
    limit = time.time() - older_than_days * SECONDS_PER_DAY
    folders = [one for one in sorted(checkpoints.glob("*")) if one.is_dir() and _newest(one) < limit]
    return Prunable(tuple(free[keep:]), tuple(folders))


def prune(found: Prunable) -> None:
    """Remove versions, their logged models' artifacts, and checkpoints."""
    client = MlflowClient()
    for version in found.versions:
        client.delete_model_version(version.name, version.version)
        model_id = model_id_of(version)
        location = client.get_logged_model(model_id).artifact_location
        client.delete_logged_model(model_id)
        get_artifact_repository(location).delete_artifacts()
    for folder in found.checkpoints:
        shutil.rmtree(folder)


def _newest(folder: Path) -> float:
    return max((one.stat().st_mtime for one in folder.rglob("*")), default=folder.stat().st_mtime)
