"""The main job as a user runs it: real DVC, real MLflow store, in a clone of this repository.

DVC keeps outputs as links into its cache here, which a user may choose: so what the verbs are given are links.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from mlflow.tracking import MlflowClient

from stackseg.dataset.files.stack import open_stack
from stackseg.model.bundle import load_bundle
from stackseg.model.segment import segment
from stackseg.params.file import read_tree, write_tree
from verbs import verb

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.slow

SMALL = {
    "train.epochs": 4,
    "train.patches_per_epoch": 16,
    "train.batch_size": 8,
    "train.patch_size": 64,
    "train.validate_every": 2,
    "model.architecture": "Linknet",
    "model.encoder": "tu-test_resnet",
    "evaluate.bootstrap_samples": 100,
}


class Project:
    """A clone, and the commands that a user types in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        source = str(root / "src")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_"))}
        self.env = kept | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": source,
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(root.parent / "site"),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),  # equal weights are of equally many threads
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
        }  # fmt: skip

    def run(self, *command: str, ok: bool = True) -> str:
        done = subprocess.run(
            command, cwd=self.root, env=self.env, capture_output=True, text=True, check=False, timeout=600
        )
        said = done.stdout + done.stderr
        if ok:
            assert done.returncode == 0, f"{command}: {said[-3000:]}"
        return said

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.root / "mlflow.db")
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def json(self, name: str) -> Any:
        return json.loads((self.root / name).read_text())

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", message)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a clone in which the main job has run once on a small sample."""
    root = tmp_path_factory.mktemp("main") / "project"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(root)], check=True)
    # what is not committed yet is under test, too
    for name in ("src", "params.yaml", "dvc.yaml", ".dvcignore"):
        target = root / name
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target, ignore=ignore) if source.is_dir() else shutil.copyfile(source, target)
    project = Project(root)
    project.run("dvc", "config", "cache.type", "symlink")
    project.run("stackseg", "sample", "--planes", "40", "--height", "64", "--width", "64")
    write_params(project, SMALL)
    project.commit("small")
    project.run("dvc", "repro")
    return project


def write_params(project: Project, values: dict[str, Any]) -> None:
    tree = read_tree(project.root / "params.yaml")
    for key, value in values.items():
        section, name = key.split(".")
        tree[section][name] = value
    write_tree(project.root / "params.yaml", tree)


def versions(project: Project) -> list[tuple[Any, ...]]:
    return project.sql("select version, run_id from model_versions order by version")


def test_ends_in_a_registered_version_with_scores(trained: Project) -> None:
    assert [one.is_symlink() for one in (trained.root / "outputs/model").iterdir()] == [True, True]
    assert len(versions(trained)) >= 1
    scores = trained.json("outputs/scores.json")
    logged = dict(trained.sql("select key, value from metrics where key like 'test/%' order by timestamp desc"))
    assert logged["test/mean_iou"] == pytest.approx(scores["mean_iou"])
    spec = trained.json("outputs/model/bundle.json")
    tags = dict(trained.sql("select key, value from model_version_tags where version = 1"))
    assert tags["bundle_digest"] == spec["digest"]
    assert tags["data_md5"] == spec["lineage"]["data_md5"]
    assert spec["lineage"]["data_md5"] in (trained.root / "data.dvc").read_text()
    assert spec["lineage"]["git_dirty"] is False


def test_the_run_holds_params_epochs_datasets_pictures_and_lineage(trained: Project) -> None:
    (run_id,) = trained.sql("select run_id from model_versions where version = 1")[0]
    params = dict(trained.sql(f"select key, value from params where run_uuid = '{run_id}'"))
    assert params["train.patch_size"] == "64"
    assert params["model.encoder"] == "tu-test_resnet"
    epochs = trained.sql(
        f"select step from metrics where run_uuid = '{run_id}' and key = 'training/loss' order by step"
    )
    assert epochs == [(0,), (1,), (2,), (3,)]
    tags = dict(trained.sql(f"select key, value from tags where run_uuid = '{run_id}'"))
    assert tags["git.commit"] == trained.run("git", "rev-parse", "HEAD").strip()
    digests = {digest for (digest,) in trained.sql("select digest from datasets")}
    assert digests == {tags["data_md5"]}
    assert [name for name in tags if name.startswith("mlflow.source.git")]
    contexts = {value for (value,) in trained.sql("select value from input_tags where name = 'mlflow.data.context'")}
    assert contexts == {"training", "validation", "test"}
    (location,) = trained.sql(f"select artifact_uri from runs where run_uuid = '{run_id}'")[0]
    pictures = {one.name for one in (Path(location.removeprefix("file://")) / "pictures").iterdir()}
    assert {"curves.png", "confusion.png", "iou.png"} <= pictures
    assert any(name.startswith("worst_1") for name in pictures)


def test_a_second_repro_does_nothing(trained: Project) -> None:
    before = versions(trained)
    assert "Data and pipelines are up to date" in trained.run("dvc", "repro")
    assert versions(trained) == before


def test_nothing_is_pickled(trained: Project) -> None:
    files = [one for one in (trained.root / "mlruns").rglob("*") if one.is_file()]
    assert any(one.name == "model.safetensors" for one in files)
    assert not [one for one in files if one.suffix in (".pkl", ".pth", ".pt", ".pickle")]


def test_changed_keys_rerun_only_the_stages_that_read_them(trained: Project) -> None:
    def would_run() -> set[str]:
        status = json.loads(trained.run("dvc", "status", "--json"))
        return {stage for stage, changes in status.items() if stage in ("catalog", "train", "evaluate") and changes}

    original = (trained.root / "params.yaml").read_text()
    for values, stages in (
        ({"evaluate.overlays": 2}, {"evaluate"}),
        ({"train.lr": 0.5}, {"train"}),
        ({"split.gap": 3}, {"catalog"}),
        ({"project.experiment": "other"}, {"evaluate"}),
    ):
        write_params(trained, values)
        assert would_run() == stages, values
        (trained.root / "params.yaml").write_text(original)
    scores = trained.root / "src/stackseg/evaluation/metrics.py"
    kept = scores.read_text()
    scores.write_text(kept + "\n# edited\n")
    assert would_run() == {"evaluate"}
    scores.write_text(kept)
    registry = trained.root / "src/stackseg/registry/register.py"
    kept = registry.read_text()
    registry.write_text(kept + "\n# edited\n")
    assert would_run() == set()
    registry.write_text(kept)


def test_registering_again_adds_nothing(trained: Project) -> None:
    before = versions(trained)
    assert "is registered already" in verb(trained.root, "register")
    assert versions(trained) == before


def test_dvc_experiments_log_to_the_same_store(trained: Project) -> None:
    before = len(versions(trained))
    trained.run("dvc", "exp", "run", "--temp", "-S", "train.lr=0.003", "-n", "hot")
    assert len(versions(trained)) == before + 1
    tags = trained.sql("select value from tags where key = 'dvc.experiment'")
    assert ("hot",) in tags
    assert not (trained.root / ".dvc/tmp/exps").rglob("mlflow.db") or not list(
        (trained.root / ".dvc/tmp/exps").rglob("mlflow.db")
    )
    shown = trained.run("dvc", "exp", "show", "--csv")
    assert "hot" in shown
    assert "mean_iou" in shown


def test_plots_and_metrics_render(trained: Project) -> None:
    trained.run("dvc", "plots", "show", "--out", "dvc_plots")
    page = (trained.root / "dvc_plots/index.html").read_text()
    for title in ("Loss on training patches", "Mean IoU on the validation part", "IoU per class"):
        assert title in page
    assert "mean_iou" in trained.run("dvc", "metrics", "show")


def test_a_clone_with_a_remote_registers_the_same_version(trained: Project, tmp_path: Path) -> None:
    digest = trained.json("outputs/model/bundle.json")["digest"]
    trained.run("dvc", "remote", "add", "-f", "-d", "local", str(tmp_path / "remote"))
    trained.run("dvc", "push")
    trained.commit("outputs")
    clone = Project(tmp_path / "clone")
    subprocess.run(["git", "clone", "-q", str(trained.root), str(clone.root)], check=True)
    clone.run("dvc", "remote", "add", "-f", "-d", "local", str(tmp_path / "remote"))
    clone.run("dvc", "pull")
    said = verb(clone.root, "register")
    assert "is not in this store" in said
    tags = dict(clone.sql("select key, value from model_version_tags"))
    assert tags["bundle_digest"] == digest
    assert "is registered already" in verb(clone.root, "register")
    assert len(versions(clone)) == 1
    assert "is the champion of stackseg" in verb(clone.root, "promote", "--force", "--reason", "the only one")
    answer = served_answer(clone, trained.root / "data/images.tif")
    assert answer["bundle_digest"] == digest
    mask_zyx = tifffile.imread(io.BytesIO(base64.b64decode(answer["mask"])))
    bundle = load_bundle(clone.root / "outputs/model")
    with open_stack(trained.root / "data/images.tif") as stack:
        assert np.array_equal(mask_zyx, [one.mask_yx for one in segment(stack, bundle)])


def served_answer(project: Project, image: Path) -> Any:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # as typed, from the project's root, with no variable of ours; the code is the model's own
    env = {key: value for key, value in project.env.items() if key != "PYTHONPATH"}
    command = [
        "mlflow",
        "models",
        "serve",
        "-m",
        "models:/stackseg@champion",
        "--env-manager",
        "local",
        "-p",
        str(port),
    ]
    server = subprocess.Popen(
        command, cwd=project.root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None, server.stdout.read().decode()[-3000:]  # type: ignore[union-attr]
                assert time.monotonic() < deadline
                time.sleep(0.5)
        encoded = base64.b64encode(image.read_bytes()).decode()
        body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[encoded]]}}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)["predictions"][0]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.communicate()


def test_a_killed_training_goes_on_and_ends_in_the_same_weights(trained: Project, tmp_path: Path) -> None:
    whole = Project(tmp_path / "whole")
    shutil.copytree(trained.root, whole.root, ignore=shutil.ignore_patterns("mlruns", "mlflow.db*", ".dvc"))
    broken = Project(tmp_path / "broken")
    shutil.copytree(whole.root, broken.root)
    for project in (whole, broken):
        write_params(project, {"train.epochs": 6, "train.validate_every": 1, "train.ema": 0.9})
    process = subprocess.Popen(
        ("stackseg", "train"), cwd=broken.root, env=broken.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not list((broken.root / "checkpoints").glob("*/last-*.pt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "going on at epoch" in verb(broken.root, "train")
    verb(whole.root, "train")
    digests = [one.json("outputs/model/bundle.json")["weights_sha256"] for one in (whole, broken)]
    assert digests[0] == digests[1]
    assert broken.sql("select count(*) from runs") == [(1,)]
    steps = broken.sql("select step from metrics where key = 'training/loss' order by step")
    assert [step for (step,) in steps] == list(range(6))


def test_prune_shows_then_removes(trained: Project, tmp_path: Path) -> None:
    project = Project(tmp_path / "pruned")
    shutil.copytree(trained.root, project.root)
    verb(project.root, "relocate")
    # as a user would in MLflow's page: versions that an alias names are never removed
    MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}").delete_registered_model_alias("stackseg", "challenger")
    assert "would be removed" in verb(project.root, "prune", "--keep", "0")
    assert versions(project)
    verb(project.root, "prune", "--keep", "0", "--yes")
    assert project.sql("select count(*) from model_versions where current_stage <> 'Deleted_Internal'") == [(0,)]
    assert not list((project.root / "mlruns").rglob("model.safetensors"))
