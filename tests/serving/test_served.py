"""A registered version behind a real server: equal masks, plain refusals, and a champion that changes meanwhile."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tifffile

from served_projects import NAME, Served, environment, fill_registry, request, serving, tiff
from tiny_projects import tiny_stack

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("served") / "project"
    fill_registry(root, environment())
    options = ("--watch", "--watch-seconds", "0.3", "--max-megabytes", "3", "--max-megapixels", "1")
    with serving(root, environment(), *options) as server:
        yield server


@pytest.fixture(scope="module")
def stack_zyx() -> np.ndarray:
    return tiny_stack(7, seed=5)[0]


def test_predict_the_served_model_and_segment_remote_give_the_same_masks(
    served: Served, stack_zyx: np.ndarray, tmp_path: Path
) -> None:
    image = tmp_path / "image.tif"
    image.write_bytes(tiff(stack_zyx, metadata={"axes": "ZYX"}))
    served.run("stackseg", "predict", str(image), str(tmp_path / "predicted.tif"))
    said = served.run("stackseg", "segment-remote", served.url, str(image), str(tmp_path / "remote.tif"))
    assert "7 planes by stackseg version 1" in said
    predicted_zyx = tifffile.imread(tmp_path / "predicted.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "remote.tif"), predicted_zyx)
    answer = served.answer(image.read_bytes(), output="npz")
    with np.load(io.BytesIO(base64.b64decode(answer["mask"]))) as arrays:
        np.testing.assert_array_equal(arrays["mask"], predicted_zyx)
    one = served.answer(image.read_bytes(), output="png", plane=3)
    assert one["shape"] == [1, *stack_zyx.shape[1:]]
    assert one["bundle_digest"] == answer["bundle_digest"]
    for name in ("predicted.tif", "remote.tif"):
        with tifffile.TiffFile(tmp_path / name) as file:
            # Fiji draws the classes in their colours
            assert file.pages.first.photometric == tifffile.PHOTOMETRIC.PALETTE
            assert file.pages.first.colormap[:, 1].tolist() == [0, 65535, 0]


@pytest.mark.parametrize("form", ["inputs", "instances"])
def test_the_bare_app_names_the_form_that_it_wants(served: Served, stack_zyx: np.ndarray, form: str) -> None:
    script = (
        "import json, sys, mlflow\n"
        "from mlflow.pyfunc import scoring_server\n"
        "model = mlflow.pyfunc.load_model('models:/stackseg/1')\n"
        "body = sys.stdin.buffer.read()\n"
        "try:\n"
        "    scoring_server.invocations(body, 'application/json', model, model.metadata.get_input_schema())\n"
        "except mlflow.exceptions.MlflowException as error:\n"
        "    print(error.get_http_status_code(), error.message.rpartition('Error: ')[2])\n"
    )
    text = base64.b64encode(tiff(stack_zyx[0])).decode()
    body = {"inputs": [text]} if form == "inputs" else {"instances": [{"image": text}]}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=served.root, env=served.env, input=json.dumps(body).encode(), capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout.decode().startswith("400 MLflow decodes no images under inputs"), done.stderr.decode()
    assert "dataframe_split" in done.stdout.decode()


def test_a_new_champion_takes_over_without_a_failed_request(served: Served, stack_zyx: np.ndarray) -> None:
    body = request(tiff(stack_zyx[0]))
    seen: list[str] = []
    stop = threading.Event()

    def keep_asking() -> None:
        with requests.Session() as session:
            while not stop.is_set():
                response = session.post(f"{served.url}/invocations", json=body, timeout=60)
                ok = response.status_code == 200
                seen.append(response.json()["predictions"][0]["model_version"] if ok else response.text)

    threads = [threading.Thread(target=keep_asking) for _ in range(2)]
    for one in threads:
        one.start()
    try:
        for version in ("2", "1"):
            if version == "2":
                served.run("stackseg", "promote", "2", "--force", "--reason", "a test")
            else:
                served.run("stackseg", "rollback")
            deadline = time.monotonic() + 60
            while not seen or seen[-1] != version:
                assert time.monotonic() < deadline, seen[-5:]
                assert requests.get(f"{served.url}/ping", timeout=10).status_code == 200
                time.sleep(0.1)
    finally:
        stop.set()
        for one in threads:
            one.join()
    assert set(seen) == {"1", "2"}
    history = served.run("stackseg", "models", "--history", "--json")
    assert [word in history for word in ('"force"', '"rollback"', "a test")] == [True] * 3


def test_a_missing_model_and_a_taken_port_are_said(served: Served) -> None:
    said = served.run("stackseg", "serve", "--model", "9", ok=False)
    assert "no version or alias '9'; expected one of champion" in said
    port = served.url.rpartition(":")[2]
    said = served.run("stackseg", "serve", "--port", port, ok=False)
    assert "name a free port" in said.lower()
    assert "Traceback" not in said
