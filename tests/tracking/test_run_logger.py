"""What a training's run says of itself: its name, its description, and the same planes epoch by epoch."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stackseg.tracking.cross_validation import train_all_folds
from stackseg.tracking.descriptions import with_section
from stackseg.tracking.lineage import GitState, run_name
from stackseg.tracking.logged_training import train_and_log
from stackseg.tracking.run_logger import remove_checkpoints_of
from stackseg.tracking.store import prepare_store
from stackseg.training.train import Machine, TrainingResult
from stackseg.training.validation import _shares
from tiny_projects import Project, make_tiny_project, tiny_stack, write_specimen

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:The specified dataset source can be interpreted in multiple ways"),
]


@pytest.fixture
def recorded(
    copy_store: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Project, str]:
    """Return a project outside any git repository, and the id of its experiment."""
    copy_store(tmp_path)
    monkeypatch.chdir(tmp_path)
    project = make_tiny_project(tmp_path, {"train.epochs": 2})
    return project, prepare_store(tmp_path, experiment="rocks").experiment_id


def logged(project: Project, experiment_id: str, out: Path, *callbacks: Any) -> TrainingResult:
    """Train a tiny project as the verb does, logged to an experiment."""
    result = train_and_log(
        project.params,
        project.catalog,
        data=project.data,
        out=out,
        checkpoints=project.checkpoints,
        experiment_id=experiment_id,
        machine=Machine(device="cpu"),
        callbacks=callbacks,
    )
    assert result is not None
    return result


def test_a_run_says_what_it_is_and_shows_the_same_planes_at_each_validation(
    recorded: tuple[Project, str], tmp_path: Path
) -> None:
    project, experiment_id = recorded
    result = logged(project, experiment_id, tmp_path / "outputs")
    # the same weights as without anybody who looks at planes, trained anew
    shutil.rmtree(project.checkpoints)
    assert result.spec.digest == project.train("alone").spec.digest

    client = mlflow.MlflowClient()
    (run,) = client.search_runs([experiment_id])
    assert run.info.run_name == "Linknet-tu-test_resnet"
    note = run.data.tags["mlflow.note.content"]
    assert note.index("### Data") < note.index("### Training")
    assert project.catalog.data_md5 in note
    assert f"Best epoch {result.spec.validation.epoch + 1} of 2" in note

    images = [one.path for one in client.list_artifacts(run.info.run_id, "images") if one.path.endswith(".png")]
    keys = sorted({one.split("+")[0] for one in images})
    assert sorted(tuple(one.split("+")[:3]) for one in images) == [
        (key, "step", str(n)) for key in keys for n in (0, 1)
    ]
    path = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=images[0])
    height, width = project.catalog.specimens[0].planes[0].shape_yx
    with Image.open(path) as image:
        assert image.size == (2 * width + 4, 2 * height + 4)


KILLED = """
import os, signal, sys
from pathlib import Path
from stackseg.tracking import logged_training
from stackseg.training import train
from stackseg.training.train import Machine
from stackseg.tracking.store import prepare_store
from tiny_projects import make_tiny_project
where = {"train": train, "logged_training": logged_training}[sys.argv[1]]
setattr(where, sys.argv[2], lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
project = make_tiny_project(Path.cwd(), {"train.epochs": 2})
logged_training.train_and_log(
    project.params, project.catalog, data=project.data, out=Path("outputs"), checkpoints=project.checkpoints,
    experiment_id=prepare_store(Path.cwd(), experiment="rocks").experiment_id, machine=Machine(device="cpu"),
)
"""


@pytest.mark.parametrize("killed_at", ["train bundle_training", "logged_training write_run"])
def test_a_kill_after_the_last_epoch_costs_no_epoch_and_opens_no_second_run(
    recorded: tuple[Project, str], tmp_path: Path, follower: Any, killed_at: str
) -> None:
    project, experiment_id = recorded
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    env.pop("MLFLOW_TRACKING_URI", None)
    killed = subprocess.run([sys.executable, "-c", KILLED, *killed_at.split()], cwd=tmp_path, env=env, check=False)
    assert killed.returncode == -signal.SIGKILL
    (before,) = mlflow.MlflowClient().search_runs([experiment_id])
    follows = follower()
    result = logged(project, experiment_id, tmp_path / "outputs", follows)
    assert (follows.starts[0].first_epoch, follows.reports, len(result.history)) == (2, [], 2)
    (run,) = mlflow.MlflowClient().search_runs([experiment_id])
    assert (run.info.run_id, run.info.status) == (before.info.run_id, "FINISHED")
    remove_checkpoints_of("another", project.checkpoints)
    assert list(project.checkpoints.glob("*/last-*.pt"))
    remove_checkpoints_of(run.info.run_id, project.checkpoints)
    assert list(project.checkpoints.iterdir()) == []


def test_folds_leave_the_test_part_unread(recorded: tuple[Project, str], tmp_path: Path) -> None:
    project, experiment_id = recorded
    spoilt = project.data / "rock" / "images.tif"
    images_zyx = tifffile.imread(spoilt)
    for ref, _ in project.catalog.planes("test"):
        images_zyx[ref.z] = 0
    tifffile.imwrite(spoilt, images_zyx, photometric="minisblack", metadata={"axes": "ZYX"})
    pooled = train_all_folds(
        project.params.override({"train.epochs": 1}),
        project.catalog,
        data=project.data,
        out=tmp_path / "folds",
        num_folds=2,
        checkpoints=project.checkpoints,
        experiment_id=experiment_id,
        machine=Machine(device="cpu"),
        callbacks=[],
        on_fold=lambda _: None,
    )
    assert pooled is not None
    outside_test = project.catalog.planes("training", "validation")
    assert sum(one.num_planes for one in pooled.folds) == len(outside_test)
    runs = mlflow.MlflowClient().search_runs([experiment_id])
    assert {one.info.run_name for one in runs} == {"fold 0", "fold 1", "2 folds · Linknet-tu-test_resnet"}
    parent = next(one for one in runs if one.info.run_name.startswith("2 folds"))
    assert "### Validation scores pooled over 2 folds" in parent.data.tags["mlflow.note.content"]


def test_the_first_process_validates_the_planes_that_are_shown(
    recorded: tuple[Project, str],
) -> None:
    catalog = recorded[0].having({"split.validation": 0.5}).catalog
    planes = [ref for ref, _ in catalog.planes("validation")]
    assert len(planes) > 2
    alone, everything = _shares(catalog, 0, 1)
    assert (len(alone), everything) == (2, planes)
    for num_processes in (2, 3):
        shares = [_shares(catalog, rank, num_processes) for rank in range(num_processes)]
        assert [shown for shown, _ in shares] == [alone, *[[]] * (num_processes - 1)]
        assert set(alone) <= set(shares[0][1])
        assert sorted(ref.z for _, mine in shares for ref in mine) == [ref.z for ref in planes]


@pytest.mark.parametrize(
    ("git", "expected"),
    [
        (GitState(None, None, "", None), "Unet-resnet18"),
        (GitState("64635c8ffff", False, "", "main"), "Unet-resnet18 · 64635c8"),
        (GitState("64635c8ffff", True, "+", "main"), "Unet-resnet18 · 64635c8+"),
    ],
)
def test_a_run_is_named_by_its_network_and_its_code(
    git: GitState, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stackseg.params.model import ModelParams

    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    assert run_name(ModelParams(), git) == expected
    monkeypatch.setenv("DVC_EXP_NAME", "puffy-cat")
    assert run_name(ModelParams(), git) == "Unet-resnet18 · puffy-cat"


WORDS = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters=" |*"), min_size=1, max_size=20)


@given(mine=WORDS, texts=st.lists(WORDS.map(str.strip).filter(bool), min_size=3, max_size=3))
@settings(deadline=None, max_examples=40)
def test_a_section_is_written_anew_and_the_others_stay(mine: str, texts: list[str]) -> None:
    first, second, third = texts
    note = with_section(with_section(mine, "Data", first), "Scores", second)
    assert with_section(note, "Data", third) == with_section(with_section(mine, "Data", third), "Scores", second)
    assert with_section(note, "Scores", second) == note
    assert mine.strip() in note


def test_any_specimen_may_be_partly_annotated(recorded: tuple[Project, str], tmp_path: Path) -> None:
    project, experiment_id = recorded
    write_specimen(project.data / "a+b", *tiny_stack(seed=1))
    project = project.having({"data.partial": {"a+b": ["ore"]}, "train.epochs": 1})
    logged(project, experiment_id, tmp_path / "outputs")
    (run,) = mlflow.search_runs([experiment_id], output_format="list")
    assert run.data.params["data.partial.a_b"] == '["ore"]'
