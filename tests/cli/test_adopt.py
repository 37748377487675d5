"""Models that no training of this project made: joined or taken in, scored, registered."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from other_bundles import another
from registry_fixtures import Registry
from stackseg.catalog.build import build_catalog
from stackseg.cli.main import app
from stackseg.dataset.records import write_catalog
from stackseg.errors import StacksegError
from stackseg.model.bundle import read_spec
from stackseg.params.file import write_tree
from stackseg.registry.versions import read_registered_model
from tiny_projects import Project

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:The specified dataset source can be interpreted in multiple ways"),
    # MLflow's own, on being imported
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


def stackseg(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def refusal(*arguments: str) -> str:
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, StacksegError), error
    assert "\n" not in error.sentence()
    return error.sentence()


@pytest.fixture
def members(registry: Registry, trained: tuple[Project, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write the project of the trained model around the registry; return two bundles in it."""
    monkeypatch.setenv("STACKSEG_DEVICE", "cpu")
    project, _ = trained
    shutil.copytree(project.data, registry.root / "data")
    params = project.params.override({"project.model_name": registry.name})
    write_tree(registry.root / "params.yaml", params.model_dump(mode="json"))
    write_catalog(registry.root / "outputs" / "catalog.json", build_catalog(registry.root / "data", params))
    shutil.copytree(project.folder / "model", registry.root / "one")
    another(registry.root / "one", registry.root / "two")
    return ["one", "two"]


def test_an_ensemble_is_scored_registered_and_named(registry: Registry, members: list[str]) -> None:
    said = stackseg("ensemble", *members)
    assert "next: stackseg evaluate --model outputs/ensemble/model --out outputs/ensemble" in said
    said = stackseg("evaluate", "--model", "outputs/ensemble/model", "--out", "outputs/ensemble")
    assert f"registered {registry.name} version 1" in said
    version = read_registered_model(registry.name).versions["1"]
    spec = read_spec(Path("outputs/ensemble/model"))
    assert version.tags["bundle_digest"] == spec.digest
    assert "the mean of 2: Linknet with tu-test_resnet" in (version.description or "")
    run = MlflowClient().get_run(str(version.run_id))
    assert run.data.params == {
        f"member.{place}": f"{name}, bundle {read_spec(Path(name)).digest[:12]}" for place, name in enumerate(members)
    }
    stackseg("promote", "--force", "--reason", "a test")
    out = registry.root / "mask.tif"
    (image,) = Path("data").glob("*/images.tif")
    assert spec.digest[:12] in stackseg("predict", str(image), str(out), "--overwrite")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_export_is_scored_registered_and_taken_in_elsewhere(registry: Registry, members: list[str]) -> None:
    said = stackseg("export", "one", "--to", "openvino")
    assert "openvino takes" in said
    assert "of the pixels differ" in said
    said = stackseg("evaluate", "--model", "outputs/exported/model", "--out", "outputs/exported")
    assert f"registered {registry.name} version 1" in said
    address = f"models:/{registry.name}/1/requirements.txt"
    requirements = Path(mlflow.artifacts.download_artifacts(address)).read_text()
    assert f"openvino=={version('openvino')}" in requirements
    stackseg("promote", "--force", "--reason", "a test")
    assert read_spec(Path("outputs/exported/model")).digest[:12] in stackseg(
        "predict", *map(str, Path("data").glob("*/images.tif")), "mask.tif", "--overwrite"
    )
    packed = shutil.make_archive("exported", "zip", "outputs/exported/model")
    stackseg("import-model", packed)
    assert read_spec(Path("outputs/imported/model")) == read_spec(Path("outputs/exported/model"))


@pytest.mark.parametrize("packed", ["folder", "zip", "zip of the folder"])
def test_a_model_from_elsewhere_is_scored_and_registered(registry: Registry, members: list[str], packed: str) -> None:
    source = "two"
    if packed != "folder":
        above = packed == "zip of the folder"
        source = shutil.make_archive("two", "zip", *((".", "two") if above else ("two",)))
    stackseg("import-model", source)
    said = stackseg("evaluate", "--model", "outputs/imported/model", "--out", "outputs/imported")
    assert f"registered {registry.name} version 1" in said
    assert read_spec(Path("outputs/imported/model")) == read_spec(Path("two"))


def test_what_cannot_be_taken_in_is_told_and_nothing_is_written(registry: Registry, members: list[str]) -> None:
    Path("no.zip").write_bytes(b"no archive")
    Path("empty").mkdir(exist_ok=True)
    seen = read_spec(Path("one")).seen
    # what was training there is to be the test part here
    catalog = build_catalog(Path("data"), _other_seed(registry))
    own = {plane.image_sha256 for _, plane in catalog.planes("test")}
    assert own & {*seen.training, *seen.validation}
    assert "no ZIP file" in refusal("import-model", "no.zip")
    assert "no such file or folder" in refusal("import-model", "gone")
    assert "no bundle.json" in refusal("import-model", "empty")
    write_catalog(Path("outputs/catalog.json"), catalog)
    for words in (("import-model", "one"), ("ensemble", *members)):
        assert "test planes; expected planes that are new to it" in refusal(*words)
    assert not Path("outputs/imported").exists()
    assert not Path("outputs/ensemble").exists()


def _other_seed(registry: Registry) -> Any:
    from stackseg.params.file import read_params

    params = read_params(registry.root / "params.yaml")
    planes = ["0-2"]
    (name,) = [one.name for one in Path("data").iterdir()]
    return params.override(
        {
            "split.method": "explicit",
            "split.explicit.test": [f"{name}/{one}" for one in planes],
            "split.explicit.validation": [f"{name}/9"],
        }
    )
