"""Projects written by earlier versions still open: bundle, catalogue, scores, registry, study and served model.

`layouts/<date>.tar.xz` was written by the version of that date in /home/ada/rock: a small sample, catalogued, trained,
evaluated, promoted and searched by the verbs. The weights were rounded to bfloat16 to make the file smaller.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import requests
import tifffile
import torch
from typer.testing import CliRunner

from served_projects import answering, environment, request
from stackseg.cli.main import app
from stackseg.cli.predict import bundle_folder
from stackseg.dataset.files.stack import open_stack
from stackseg.dataset.records import read_catalog
from stackseg.evaluation.report import read_evaluation
from stackseg.model.bundle import load_bundle
from stackseg.model.segment import segment
from stackseg.serving.request import Limits
from stackseg.tracking.run_logger import read_run
from verbs import verb

LAYOUTS = sorted((Path(__file__).parent / "layouts").glob("*.tar.xz"))


@pytest.fixture(scope="session", params=LAYOUTS, ids=lambda path: path.name.removesuffix(".tar.xz"))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the project as it was written, in another place than where it was; not to be changed."""
    folder = tmp_path_factory.mktemp("layout")
    with tarfile.open(request.param) as archive:
        archive.extractall(folder, filter="data")
    return folder / "rock"


@pytest.fixture
def old(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the project as the working directory."""
    root = tmp_path / "rock"
    shutil.copytree(written, root)
    monkeypatch.chdir(root)
    return root


def masks(root: Path) -> np.ndarray[Any, Any]:
    bundle = load_bundle(root / "outputs/model")
    return np.stack([one.mask_yx for one in segment(open_stack(root / "data/images.tif"), bundle, planes=[0, 1])])


def test_outputs_are_read(written: Path) -> None:
    outputs = written / "outputs"
    digest = json.loads((outputs / "model/bundle.json").read_text())["digest"]
    assert load_bundle(outputs / "model").digest == digest
    catalog = read_catalog(outputs / "catalog.json")
    record, evaluation = read_run(outputs / "run.json"), read_evaluation(outputs / "evaluation.json")
    assert record.bundle_digest == evaluation.bundle_digest == digest
    assert record.catalog_digest == evaluation.catalog_digest == catalog.digest()
    assert masks(written).shape == (2, 64, 64)


def test_the_registry_is_read_and_goes_on(old: Path) -> None:
    verb(old, "relocate")
    (version,) = json.loads(verb(old, "models", "--json"))
    assert version["aliases"] == ["champion"]
    (move,) = json.loads(verb(old, "models", "--history", "--json"))
    assert (move["action"], move["to_version"], move["who"], move["why"]) == ("force", "1", "ada", "first")
    assert "is registered already" in verb(old, "register")
    verb(old, "predict", "data/images.tif", "mask.tif")
    assert np.array_equal(tifffile.imread("mask.tif")[:2], masks(old))


def test_the_study_is_read(old: Path) -> None:
    study = optuna.load_study(study_name="search", storage="sqlite:///optuna.db")
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.COMPLETE] * 2
    assert study.best_trial.number == 0


def test_a_study_of_other_code_is_refused_in_one_line(old: Path) -> None:
    from stackseg.errors import StacksegError

    verb(old, "relocate")
    with pytest.raises(StacksegError, match="code"):
        CliRunner().invoke(app, ["search", "--trials", "3", "--resume"], catch_exceptions=False)


def test_the_old_version_is_served(old: Path) -> None:
    from stackseg.serving.app import load_model

    verb(old, "relocate")
    with bundle_folder("champion") as folder:
        model = load_model(folder, torch.device("cpu"), 64)
    image = (old / "data/images.tif").read_bytes()
    with answering(model, Limits(64, 60)) as (url, _):
        (answer,) = requests.post(f"{url}/invocations", json=request(image), timeout=60).json()["predictions"]
    assert np.array_equal(tifffile.imread(io.BytesIO(base64.b64decode(answer["mask"])))[:2], masks(old))


@pytest.mark.slow
def test_mlflow_loads_the_old_version_with_its_own_code(old: Path) -> None:
    verb(old, "relocate")
    script = (
        "import mlflow, json, sys, pandas as pd;"
        "mlflow.set_tracking_uri('sqlite:///mlflow.db');"
        "model = mlflow.pyfunc.load_model('models:/stackseg@champion');"
        "image = open('data/images.tif', 'rb').read();"
        "print(model.predict(pd.DataFrame({'image': [image]})).iloc[0]['mask'])"
    )
    env = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], cwd=old, env=env, capture_output=True, text=True, check=True
    )
    mask_zyx = tifffile.imread(io.BytesIO(base64.b64decode(done.stdout.split()[-1])))
    assert np.array_equal(mask_zyx[:2], masks(old))
