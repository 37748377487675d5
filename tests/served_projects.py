"""Projects with a filled registry, and real servers of their models."""

from __future__ import annotations

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests
import tifffile
import uvicorn

from stackseg.model.bundle import read_spec
from stackseg.serving.request import Limits
from stackseg.tracking.store import prepare_store
from tiny_projects import make_tiny_project
from verbs import inside

BIN = Path(sys.executable).parent
NAME = "stackseg"
READY = "next: stackseg segment-remote "


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a user's shell; no pickle is needed anywhere."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_"))}
    return kept | {"STACKSEG_DEVICE": "cpu", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"} | more


def fill_registry(root: Path) -> None:
    """Train two tiny models in a folder and register them: version 1 is champion, version 2 challenger."""
    import mlflow
    from mlflow.tracking import MlflowClient

    from stackseg.serving.packaging import log_bundle

    for seed, name in ((1, "model"), (2, "model2")):
        make_tiny_project(root, {"seed": seed, "model.context_slices": 1, "split.gap": 1, "train.epochs": 2}).train(
            name
        )
    (root / "params.yaml").write_text("format: 1\n")
    (root / "dvc.yaml").write_text("stages: {}\n")
    with inside(root):
        ready = prepare_store(root, experiment="stackseg")
        client = MlflowClient()
        client.create_registered_model(NAME)
        for name in ("model", "model2"):
            with mlflow.start_run(experiment_id=ready.experiment_id):
                info = log_bundle(Path(name), read_spec(Path(name)))
            client.create_model_version(NAME, f"models:/{info.model_id}", model_id=info.model_id)
        client.set_registered_model_alias(NAME, "champion", "1")
        client.set_registered_model_alias(NAME, "challenger", "2")


def run(root: Path, env: dict[str, str], *command: str, ok: bool = True) -> str:
    """Run a command of the environment as a user would, and return what it says."""
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]], cwd=root, env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout + done.stderr


@dataclass(frozen=True)
class Served:
    """A server of a project's champion."""

    root: Path
    url: str
    server: psutil.Process
    env: dict[str, str]

    def run(self, *command: str, ok: bool = True) -> str:
        return run(self.root, self.env, *command, ok=ok)

    def ask(self, image: bytes, **params: Any) -> requests.Response:
        return requests.post(f"{self.url}/invocations", json=request(image, **params), timeout=60)

    def answer(self, image: bytes, **params: Any) -> dict[str, Any]:
        response = self.ask(image, **params)
        assert response.status_code == 200, response.text
        return dict(response.json()["predictions"][0])


@contextmanager
def serving(root: Path, env: dict[str, str], *options: str) -> Iterator[Served]:
    """Run `stackseg serve` until the block ends."""
    path = root / "serve.log"
    with path.open("w") as log:
        command = [str(BIN / "stackseg"), "serve", "--port", "0", *options]
        server = subprocess.Popen(command, cwd=root, env=env, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 300
        while READY not in (said := path.read_text()):
            assert server.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.2)
        yield Served(root, said.partition(READY)[2].split()[0], psutil.Process(server.pid), env)
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(30) in (0, 130)


@contextmanager
def answering(model: Any, limits: Limits) -> Iterator[tuple[str, Any]]:
    """Answer requests in a thread, as serve does; yields the address and what counts the requests under way."""
    from stackseg.serving.app import Cores, ScoringApp

    cores = Cores(2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = ScoringApp(model, cores, limits).asgi()
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield "http://{}:{}".format(*listener.getsockname()), cores
        finally:
            server.should_exit = True
            thread.join()


def request(image: bytes, **params: Any) -> dict[str, Any]:
    """Return the body of a request."""
    text = base64.b64encode(image).decode()
    return {"dataframe_split": {"columns": ["image"], "data": [[text]]}, "params": params}


def tiff(image: np.ndarray, **options: Any) -> bytes:
    """Return the bytes of a TIFF."""
    file = io.BytesIO()
    tifffile.imwrite(file, image, photometric="minisblack", **options)
    return file.getvalue()
