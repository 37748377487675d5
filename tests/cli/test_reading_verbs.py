"""Verbs that read the registry leave the store as it is, and say what is due."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import tifffile
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from registry_fixtures import Registry
from stackseg.cli.main import app
from stackseg.errors import StacksegError
from stackseg.model.bundle import read_spec
from stackseg.serving.packaging import log_bundle
from tiny_projects import Project, tiny_stack

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    # MLflow's own, on being imported
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

MOVED = "stackseg relocate"
VERBS = ("models", "models --history", "prune", "predict in.tif out.tif", "serve --port 0")


def content(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as connection:
        return list(connection.iterdump())


def files(root: Path) -> set[str]:
    return {str(one) for one in root.rglob("*") if not one.name.startswith("mlflow.db-")}


def run(verb: str) -> tuple[str, StacksegError | None]:
    done = CliRunner().invoke(app, verb.split())
    assert done.exception is None or isinstance(done.exception, StacksegError), done.exception
    return done.output, done.exception


@pytest.fixture
def moved(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project that was moved since its champion was made."""
    champion = registry.add_version((registry.root / "mlruns" / "gone").as_uri())
    MlflowClient().set_registered_model_alias(registry.name, "champion", champion)
    root = Path(shutil.copytree(registry.root, tmp_path / "elsewhere"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(root)
    tifffile.imwrite("in.tif", np.zeros((8, 8), np.uint8))
    return root


def test_in_a_moved_project_nothing_is_written_and_what_is_due_is_said(moved: Path) -> None:
    before, there = content(moved / "mlflow.db"), files(moved)
    for verb in VERBS:
        said, error = run(verb)
        assert (error is not None) == verb.startswith(("predict", "serve"))
        assert MOVED in (said if error is None else error.sentence())
    assert content(moved / "mlflow.db") == before
    assert files(moved) == there
    run("relocate")
    assert content(moved / "mlflow.db") != before
    assert MOVED not in run("models")[0]


def test_a_version_is_loaded_without_a_write(registry: Registry, trained: tuple[Project, Any]) -> None:
    model = trained[0].folder / "model"
    with mlflow.start_run(experiment_id=MlflowClient().get_experiment_by_name("stackseg").experiment_id):
        info = log_bundle(model, read_spec(model))
    registry.add_version(f"models:/{info.model_id}", model_id=info.model_id)
    tifffile.imwrite("stack.tif", tiny_stack(num_planes=2)[0], metadata={"axes": "ZYX"}, photometric="minisblack")
    before, there = content(registry.root / "mlflow.db"), files(registry.root)
    said, error = run("predict stack.tif out.tif --model 1")
    assert error is None
    assert "2 planes by bundle" in said
    assert content(registry.root / "mlflow.db") == before
    assert files(registry.root) - there == {str(registry.root / "out.tif")}


def test_in_a_new_project_no_store_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("format: 1\n")
    Path("dvc.yaml").touch()
    tifffile.imwrite("in.tif", np.zeros((8, 8), np.uint8))
    there = files(tmp_path)
    expected_of = {"models": "dvc repro", "models --history": "champions of", "prune": "nothing to prune"}
    for verb, expected in (expected_of | {"predict in.tif out.tif": "`dvc repro` makes one"}).items():
        said, error = run(verb)
        assert expected in (said if error is None else error.sentence())
    assert files(tmp_path) == there
