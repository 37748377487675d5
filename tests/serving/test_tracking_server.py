"""The registry behind an MLflow server that keeps artifacts, on PostgreSQL, where that is installed."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
import tifffile
import torch

from databases import free_port, postgresql
from served_projects import BIN, answering, environment, fill_registry, tiff
from stackseg.cli.predict import bundle_folder
from stackseg.serving.request import Limits
from tiny_projects import tiny_stack
from verbs import inside, verb

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """Return the address of a PostgreSQL of our own."""
    with postgresql() as url:
        yield url


@pytest.fixture(scope="module")
def tracking(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of an MLflow server on it, which keeps the artifacts."""
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    command = [
        str(BIN / "mlflow"), "server", "--backend-store-uri", database, "--artifacts-destination", str(folder / "kept"),
        "--port", str(port), "-w", "1",
    ]  # fmt: skip
    env = environment(PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                requests.get(f"{url}/health", timeout=2).raise_for_status()
                break
            except requests.RequestException:
                assert server.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.5)
        yield url
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def test_register_promote_predict_and_serve_through_a_server(
    tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stackseg.serving.app import load_model

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    root = tmp_path / "project"
    fill_registry(root)
    assert not (root / "mlruns").exists()
    image = root / "image.tif"
    image.write_bytes(tiff(tiny_stack(3, seed=5)[0], metadata={"axes": "ZYX"}))
    assert '"champion"' in verb(root, "models", "--json")
    verb(root, "predict", "image.tif", "first.tif")
    verb(root, "promote", "--force", "--reason", "through a server")
    verb(root, "predict", "image.tif", "second.tif")
    assert (tifffile.imread(root / "first.tif") != tifffile.imread(root / "second.tif")).any()
    with inside(root), bundle_folder("champion") as folder:
        model = load_model(folder, torch.device("cpu"), 64)
    with answering(model, Limits(64, 60)) as (url, _):
        verb(root, "segment-remote", url, "image.tif", "remote.tif")
    np.testing.assert_array_equal(tifffile.imread(root / "remote.tif"), tifffile.imread(root / "second.tif"))
    verb(root, "rollback")
    said = verb(root, "models", "--history", "--json")
    assert "through a server" in said
    assert '"rollback"' in said
