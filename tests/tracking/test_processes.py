"""Runs whose process was killed are ended by the next verb that writes; all others are left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from stackseg.tracking.processes import HOST, STARTED, close_abandoned_runs, process_tags
from stackseg.tracking.store import prepare_store

KILLED = """
import json, os, signal
from stackseg.tracking.processes import process_tags
print(json.dumps(process_tags()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return prepare_store(tmp_path, experiment="rocks").experiment_id


def test_only_runs_of_dead_processes_of_this_machine_are_ended(experiment: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=False)
    dead = json.loads(done.stdout)
    mine = process_tags()
    client = MlflowClient()

    def run_of(tags: dict[str, str]) -> str:
        return str(client.create_run(experiment, tags=tags).info.run_id)

    abandoned = {run_of(dead), run_of({**mine, STARTED: "12.5"})}  # the second: another process had this number
    others = {run_of(mine), run_of({**dead, HOST: "node7"}), run_of({})}
    assert set(close_abandoned_runs(experiment)) == abandoned
    for one in abandoned:
        found = mlflow.get_run(one)
        assert found.info.status == "KILLED"
        assert "process" in found.data.tags["ended"]
    for one in others:
        assert mlflow.get_run(one).info.status == "RUNNING"
    assert close_abandoned_runs(experiment) == []
