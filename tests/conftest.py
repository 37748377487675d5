"""Fixtures that several rooms share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stackseg.intake.params_update import SAMPLE_TRAINING
from stackseg.intake.sample import SAMPLE_CLASSES
from stackseg.params.file import read_tree, write_tree
from stackseg.params.split import SplitParams
from stackseg.params.train import TrainParams
from verbs import own_store

pytest_plugins = ("network_fixtures", "registry_fixtures")

ROOT = Path(__file__).parents[1]
"""The repository."""


@pytest.fixture(autouse=True)
def _no_tracking_store_is_left() -> Iterator[None]:
    with own_store():
        yield


@pytest.fixture(scope="session")
def project_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project without data: the repository's params.yaml with the sample's table, git and DVC initialised."""
    root = tmp_path_factory.mktemp("template") / "project"
    root.mkdir()
    params = root / "params.yaml"
    shutil.copyfile(ROOT / "params.yaml", params)
    # whoever works with data of their own has their table in the repository's file
    tree = read_tree(params)
    tree["data"] |= {"classes": [dict(zip(("name", "raw", "display"), one, strict=True)) for one in SAMPLE_CLASSES]}
    tree["data"] |= {"colour": "keep", "ignore": None}
    tree["split"] = SplitParams().model_dump(mode="json")
    tree["train"] = TrainParams().model_dump(mode="json") | SAMPLE_TRAINING
    write_tree(params, tree)
    quiet = {**os.environ, "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(root.parent / "site")}
    subprocess.run(["git", "init", "-q", "--template=", str(root)], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=root, check=True, env=quiet)
    return root


@pytest.fixture
def project(project_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project of its own, which is the working directory."""
    root = tmp_path / "project"
    shutil.copytree(project_template, root)
    monkeypatch.chdir(root)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    return root
