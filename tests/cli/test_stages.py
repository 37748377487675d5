"""The verb train where `model.init` names a model: a version of a real store, a folder, and what is neither."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from registry_fixtures import Registry
from stackseg.catalog.build import build_catalog
from stackseg.cli.main import app
from stackseg.dataset.records import write_catalog
from stackseg.errors import StacksegError
from stackseg.model.bundle import read_spec
from stackseg.params import Params
from stackseg.params.file import write_tree
from stackseg.serving.packaging import log_bundle
from tiny_projects import SETTINGS, Project, tiny_stack, write_specimen

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:The specified dataset source can be interpreted in multiple ways"),
    # MLflow's own, on being imported
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


def write_project(root: Path, init: str, *deps: str, **project: str) -> None:
    """Write another stack than the shared one, its catalogue, and params that name a model to begin with."""
    params = Params().override({**SETTINGS, "train.epochs": 1, "model.init": init})
    params = params.override({f"project.{key}": value for key, value in project.items()})
    write_specimen(root / "data" / "clay", *tiny_stack(seed=5))
    write_tree(root / "params.yaml", params.model_dump(mode="json"))
    write_tree(root / "dvc.yaml", {"stages": {"train": {"cmd": "stackseg train", "deps": [*deps]}}})
    write_catalog(root / "outputs" / "catalog.json", build_catalog(root / "data", params))


def train(*options: str) -> Any:
    return CliRunner().invoke(app, ["train", "--device", "cpu", *options])


def refusal(*options: str) -> str:
    error = train(*options).exception
    assert isinstance(error, StacksegError)
    assert "\n" not in error.sentence()
    return error.sentence()


def test_the_champion_is_begun_with_and_told_everywhere(registry: Registry, trained: tuple[Project, Any]) -> None:
    model = trained[0].folder / "model"
    parent = read_spec(model)
    with mlflow.start_run(experiment_id=MlflowClient().get_experiment_by_name("stackseg").experiment_id):
        logged = log_bundle(model, parent)
    version = registry.add_version(f"models:/{logged.model_id}", model_id=logged.model_id)
    MlflowClient().set_registered_model_alias(registry.name, "champion", version)
    init = f"models:/{registry.name}@champion"
    write_project(registry.root, init, model_name=registry.name)
    done = train()
    assert done.exception is None, done.output
    begun = f"{init} (version {version})"
    assert f"beginning with the weights of {begun}, bundle {parent.digest[:12]}" in " ".join(done.output.split())
    spec = read_spec(registry.root / "outputs" / "model")
    assert spec.lineage.parent is not None
    assert spec.lineage.parent.model_dump() == {"reference": init, "version": version, "digest": parent.digest}
    (run,) = MlflowClient().search_runs(["1"], f"tags.bundle_digest = '{spec.digest}'")
    own_tags = {key: value for key, value in run.data.tags.items() if key.startswith("parent.")}
    assert own_tags == {"parent.reference": init, "parent.version": version, "parent.digest": parent.digest}
    assert run.data.params["model.init"] == init
    assert f"Began with the weights of `{begun}`" in run.data.tags["mlflow.note.content"]

    # names that are none are told with what there is, before anything is trained
    for wrong, words in (
        ("@campion", "no version or alias 'campion'; expected one of champion, "),
        ("/9", "alias '9'"),
    ):
        write_project(registry.root, f"models:/{registry.name}{wrong}", model_name=registry.name)
        assert words in refusal()
    write_project(registry.root, "models:/a/b/c")
    assert refusal().startswith("models:/a/b/c: no version's address; expected models:/NAME@ALIAS or models:/NAME/")
    assert read_spec(registry.root / "outputs" / "model") == spec


def test_a_folder_is_begun_with_and_one_that_is_no_bundle_is_refused(
    registry: Registry, trained: tuple[Project, Any], tmp_path: Path
) -> None:
    earlier = str(shutil.copytree(trained[0].folder / "model", tmp_path / "earlier"))
    write_project(registry.root, earlier, earlier)
    done = train("--folds", "2")
    assert done.exception is None, done.output
    for fold in ("0", "1"):
        parent = read_spec(registry.root / "outputs" / "folds" / fold / "model").lineage.parent
        assert parent is not None
        assert (parent.reference, parent.version) == (earlier, None)
    (Path(earlier) / "bundle.json").unlink()
    assert refusal().startswith(f"{earlier}: no bundle.json")


@pytest.mark.parametrize("spelled", ["outputs/model", "./outputs/../outputs/model/", "absolute"])
def test_the_stage_s_own_output_is_no_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str) -> None:
    monkeypatch.chdir(tmp_path)
    init = str(tmp_path / "outputs" / "model") if spelled == "absolute" else spelled
    write_project(tmp_path, init, init)
    found = refusal()
    assert found.startswith(f"model.init: {init} is where this stage puts its model, and DVC removes that before")
    assert "models:/NAME@ALIAS" in found
    assert not (tmp_path / "mlflow.db").exists()


def test_a_folder_that_dvc_does_not_watch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path, "models/earlier", "outputs/catalog.json")
    found = refusal()
    assert "models/earlier is not among the deps of stage train" in found
    assert "Add the line `- models/earlier` to stages.train.deps" in found
