"""A bundle as an MLflow model, from wherever its files lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from registry_fixtures import Registry
from stackseg.model.bundle import load_bundle, read_spec
from stackseg.registry.versions import bundle_at
from stackseg.serving.packaging import log_bundle

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


def test_a_bundle_of_links_into_a_cache_is_logged_as_files(
    trained: tuple[Any, Any], registry: Registry, tmp_path: Path
) -> None:
    project, _ = trained
    linked = tmp_path / "outputs" / "model"  # as DVC leaves an output with cache.type symlink
    linked.mkdir(parents=True)
    for one in (project.folder / "model").iterdir():
        (linked / one.name).symlink_to(one)
    experiment_id = MlflowClient().get_experiment_by_name("stackseg").experiment_id
    spec = read_spec(linked)
    with mlflow.start_run(experiment_id=experiment_id):
        info = log_bundle(linked, spec)
    with bundle_at(f"models:/{info.model_id}", "it") as folder:
        assert not [one for one in folder.iterdir() if one.is_symlink()]
        assert json.loads((folder / "bundle.json").read_text())["digest"] == spec.digest
        assert load_bundle(folder).digest == spec.digest
