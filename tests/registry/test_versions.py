"""Bundles fetched from a registry: what is told of one that is damaged, and what an interruption leaves."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.models import Model

from stackseg.errors import ModelError
from stackseg.model.bundle import load_bundle
from stackseg.registry.versions import bundle_at

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

INTERRUPTED = """
import signal, sys, threading, time
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from stackseg.cli import main
from stackseg.registry.versions import bundle_at

def slow(self, remote_file_path, local_path):
    time.sleep(0.2)  # until all threads have been started: concurrent.futures loses one that is interrupted at that
    if remote_file_path.endswith("MLmodel"):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    for place in range(20):
        time.sleep(0.02)
        with open(f"{local_path}.{place}", "w") as file:
            file.write("more")

def verb():
    with bundle_at(sys.argv[1], "models:/rock/1"):
        pass

LocalArtifactRepository._download_file = slow
main.app = verb
main.run()
"""


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """Return a logged model, as far as it is read here."""
    folder = tmp_path / "logged"
    (folder / "artifacts" / "bundle").mkdir(parents=True)
    (folder / "artifacts" / "bundle" / "bundle.json").write_text("{}")
    model = Model()
    model.add_flavor("python_function", artifacts={"bundle": {"path": "artifacts/bundle", "uri": ""}})
    model.save(str(folder / "MLmodel"))
    return folder


def test_errors_about_the_copy_name_the_version(logged: Path) -> None:
    with pytest.raises(ModelError) as caught, bundle_at(logged.as_uri(), "models:/rock/1") as folder:
        load_bundle(folder)
    assert caught.value.where == "models:/rock/1/bundle.json"
    assert not folder.exists()


def test_artifacts_that_are_gone_name_the_version(tmp_path: Path) -> None:
    gone = (tmp_path / "gone").as_uri()
    with pytest.raises(ModelError, match=r"^models:/rock/1: "), bundle_at(gone, "models:/rock/1"):
        pass


@pytest.mark.slow
def test_an_interrupted_copy_ends_as_interrupted_and_leaves_nothing(
    logged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, logged.as_uri()],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=60,
        # a shell that runs the tests in the background has its children ignore interrupts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr == "interrupted\n"
    assert list((tmp_path / "tmp").iterdir()) == []
