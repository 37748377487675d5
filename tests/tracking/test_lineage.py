"""Lineage: the commit and what differs from it, DVC's names, and files that DVC has to watch."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from stackseg.errors import ParamsError
from stackseg.tracking.lineage import dvc_tags, git_state, require_dependency


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_outside_a_repository_nothing_is_known(tmp_path: Path) -> None:
    state = git_state(tmp_path)
    assert (state.commit, state.dirty, state.diff, state.branch) == (None, None, "", None)


def test_what_runs_write_is_no_change_and_all_else_is(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "-b", "trunk")
    (tmp_path / "params.yaml").write_text("seed: 1\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    for name in ("outputs/scores.json", "checkpoints/key/last.pt", "mlruns/1/a"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("written by a run")
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n")
    state = git_state(tmp_path)
    assert (state.commit, state.dirty, state.branch) == (git(tmp_path, "rev-parse", "HEAD"), False, "trunk")

    (tmp_path / "params.yaml").write_text("seed: 2\n")
    state = git_state(tmp_path)
    assert state.dirty
    assert "+seed: 2" in state.diff

    git(tmp_path, "checkout", "-q", "params.yaml")
    (tmp_path / "more.py").touch()
    state = git_state(tmp_path)
    assert state.dirty
    assert "more.py" in state.diff


def test_the_names_of_an_experiment_are_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    assert dvc_tags() == {}
    monkeypatch.setenv("DVC_EXP_NAME", "puffy-cat")
    assert dvc_tags() == {"dvc.experiment": "puffy-cat"}


def test_a_file_that_dvc_does_not_watch_is_refused(tmp_path: Path) -> None:
    pipeline = tmp_path / "dvc.yaml"
    require_dependency(pipeline, "train", "augment.json")
    pipeline.write_text("stages:\n  train:\n    deps:\n      - ./augment.json\n      - data:\n          cache: false\n")
    require_dependency(pipeline, "train", "augment.json")
    with pytest.raises(ParamsError, match=r"other.json is not among the deps.*Add the line `- other.json`"):
        require_dependency(pipeline, "train", "other.json")
    with pytest.raises(ParamsError, match=r"stages.catalog.deps"):
        require_dependency(pipeline, "catalog", "augment.json")
