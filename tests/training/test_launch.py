"""Several processes, started by the real command: they train as one would, and write once."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stackseg.dataset.records import read_catalog, write_catalog
from stackseg.errors import MachineError
from stackseg.evaluation.evaluate import evaluate
from stackseg.model.bundle import load_bundle
from stackseg.params.file import read_params, write_tree
from stackseg.training.learner import with_common_normalisation
from verbs import verb

BIN = Path(sys.executable).parent
COMMAND = str(BIN / "stackseg")
# a network without batch normalisation, which processes on a CPU cannot share; several losses, ignored pixels at the
# padded rims, context planes, loader processes and rare validations go the ways of their own that they have together.
# Adam divides gradients that are nothing but rounding by their size: with it, even another order of the patches in a
# batch of one process moves the loss by 1e-3 within ten steps
SETTINGS: dict[str, Any] = {
    "model.architecture": "FPN",
    "model.encoder": "tu-test_convnext",
    "model.context_slices": 1,
    "split.gap": 1,
    "split.test": 0.5,
    "train.epochs": 4,
    "train.patches_per_epoch": 32,
    "train.patch_size": 64,
    "train.batch_size": 16,
    "train.validate_every": 2,
    "train.optimizer": "sgd",
    "train.lr": 0.005,
    "train.ema": 0.7,
    "train.loss": {"focal": 1.0, "lovasz": 0.5, "tversky": 1.0, "bce": 0.5},
    "train.class_weights": "balanced",
    "train.rare_share": 1.0,
}
STACK: dict[str, Any] = {"shape_yx": (90, 50)}


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_", "STACKSEG_"))}
    return kept | {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments], cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=300
    )


def prepare(folder: Path, make_project: Any) -> Path:
    """Write a project that the command can run in, catalogue included."""
    project = make_project(folder, SETTINGS, **STACK)
    write_tree(folder / "params.yaml", project.params.model_dump(mode="json"))
    (folder / "dvc.yaml").write_text("stages: {}\n")
    write_catalog(folder / "outputs" / "catalog.json", project.catalog)
    return folder


def trained(folder: Path, processes: int, *more: str) -> subprocess.CompletedProcess[str]:
    done = run(folder, "train", "--device", "cpu", "--processes", str(processes), *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "outputs" / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def runs(folder: Path) -> list[tuple[str, str]]:
    connection = sqlite3.connect(folder / "mlflow.db")
    try:
        return connection.execute("select run_uuid, status from runs").fetchall()
    finally:
        connection.close()


@pytest.mark.slow
def test_two_processes_train_as_one(make_project: Any, tmp_path: Path) -> None:
    one = prepare(tmp_path / "one", make_project)
    two = tmp_path / "two"
    shutil.copytree(one, two)
    verb(one, "train")
    said = trained(two, 2, "--workers", "1")

    alone, together = history(one), history(two)
    assert [row["epoch"] for row in together] == [row["epoch"] for row in alone] == ["0", "1", "2", "3"]
    losses = [float(row["loss"]) for row in alone]
    assert max(losses) - min(losses) > 0.01  # it learns, or equal losses would show nothing
    for row, other in zip(alone, together, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"seconds", "patches_per_second"}:
            if row[name] in ("", "True", "False"):
                assert other[name] == row[name], name
            else:
                # a score counts pixels: one that lies between two classes moves it by more than the loss
                tolerance = 1e-4 if name == "loss" else 1e-3
                assert float(other[name]) == pytest.approx(float(row[name]), abs=tolerance), name
    # the rank that is not first says and logs nothing
    assert said.stdout.count("training ") == 1
    assert said.stdout.count("best epoch") == 1
    assert said.stderr == ""
    ((run_id, status),) = runs(two)
    assert status == "FINISHED"
    assert json.loads((two / "outputs" / "run.json").read_text())["run_id"] == run_id
    assert len([one for one in (two / "checkpoints").iterdir() if one.is_dir()]) == 1  # until the model is registered
    names = {path.name for path in (two / "outputs").iterdir()}
    assert names == {"catalog.json", "history.csv", "model", "run.json"}

    bundle = load_bundle(two / "outputs" / "model")
    catalog, params = read_catalog(two / "outputs" / "catalog.json"), read_params(two / "params.yaml")
    scored = evaluate(bundle, catalog, two / "data", params.evaluate, part="validation")
    assert scored.mean_iou == bundle.spec.validation.mean_iou


def test_processes_on_a_cpu_share_no_batch_normalisation() -> None:
    fabric = SimpleNamespace(device=torch.device("cpu"), world_size=2)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.GroupNorm(1, 2))
    assert with_common_normalisation(network, fabric) is network
    network.append(torch.nn.BatchNorm2d(2))
    with pytest.raises(MachineError, match="--processes: 2 CPU processes for a network with batch normalisation"):
        with_common_normalisation(network, fabric)


# the first process starts the second, as Fabric does, and both meet the same error
BOTH = """
import os, subprocess, sys
from stackseg.cli import main, stages
from stackseg.errors import MachineError
def load_params():
    if "LOCAL_RANK" in os.environ:
        print("started", flush=True)
    else:
        second = subprocess.Popen(sys.orig_argv, env=os.environ | {"LOCAL_RANK": "1"}, stdout=subprocess.PIPE)
        second.stdout.readline()
    raise MachineError("both meet this one")
stages.load_params = load_params
sys.argv = ["stackseg", "train"]
main.run()
"""


def test_an_error_is_one_line_whatever_the_processes(tmp_path: Path) -> None:
    # it returns when both have closed their ends
    done = subprocess.run([sys.executable, "-c", BOTH], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: both meet this one\n"
