"""Verbs for which there is not enough memory end in one line, whoever notices it first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from stackseg.params.file import read_tree, write_tree
from tiny_projects import SETTINGS, tiny_stack, write_specimen
from verbs import verb

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")]

# the limit is above what the process holds after the imports: how much that is depends on torch's build
LIMITED = """
import importlib, resource, sys
from stackseg.cli import main
for name in sys.argv[1].split(","):
    importlib.import_module(name)
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + int(sys.argv[2]) * 2**20,) * 2)
sys.argv = ["stackseg", *sys.argv[3:]]
main.run()
"""
EMPTY = """
import sys
from stackseg.cli import main, stages
def load_params():
    raise MemoryError
stages.load_params = load_params
sys.argv = ["stackseg", "catalog"]
main.run()
"""


def run(folder: Path, *arguments: str) -> str:
    """Run Python in a folder, require the exit code 1, and return what it says of the error."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-c", *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    lines = done.stderr.splitlines()
    errors = [one for one in lines if one.startswith("error: ")]
    assert errors == lines[-1:], done.stderr
    assert "Traceback" not in done.stderr
    return errors[0]


@pytest.fixture
def large(project: Path) -> Path:
    """Return a project whose patches ask for more memory than the limit leaves."""
    write_specimen(project / "data" / "rock", *tiny_stack(shape_yx=(512, 512)))
    settings = SETTINGS | {"train.patch_size": 512, "train.batch_size": 8, "train.epochs": 1, "inference.tile": 512}
    tree = read_tree(project / "params.yaml")
    for key, value in settings.items():
        section, name = key.split(".")
        tree[section][name] = value
    write_tree(project / "params.yaml", tree)
    (project / "dvc.yaml").write_text("stages: {}\n")
    verb(project, "catalog")
    return project


def test_train(large: Path) -> None:
    said = run(
        large, LIMITED, "stackseg.tracking.logged_training,stackseg.tracking.store", "300", "train", "--device", "cpu"
    )
    assert "out of memory. Lower train.batch_size" in said
    assert not (large / "outputs" / "model").exists()


def test_predict(trained: tuple[Any, Any], tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "image.tif", np.zeros((9000, 9000), np.uint8), compression="zlib")
    modules = "stackseg.prediction.run,stackseg.serving.drift,mlflow"
    verb = ("predict", "image.tif", "out.tif", "--device", "cpu", "--model", str(trained[0].folder / "model"))
    assert "out of memory" in run(tmp_path, LIMITED, modules, "400", *verb)
    assert [one.name for one in tmp_path.iterdir()] == ["image.tif"]


def test_an_error_without_words(tmp_path: Path) -> None:
    assert run(tmp_path, EMPTY).startswith("error: out of memory. Lower train.batch_size")
