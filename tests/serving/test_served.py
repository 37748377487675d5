"""A registered version behind a real server: equal masks, and a champion that changes meanwhile."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import requests
import tifffile
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server

from served_projects import NAME, Served, environment, fill_registry, request, serving, tiff
from stackseg.errors import StoreError
from stackseg.tracking.store import open_store_to_read
from tiny_projects import tiny_stack
from verbs import inside, verb

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("served") / "project"
    fill_registry(root)
    options = ("--watch", "--watch-seconds", "0.3", "--max-megabytes", "3", "--max-megapixels", "1")
    with serving(root, environment(), *options) as server:
        yield server


@pytest.fixture(scope="module")
def stack_zyx() -> np.ndarray:
    return tiny_stack(7, seed=5)[0]


@pytest.fixture
def stackseg(served: Served) -> Callable[..., str]:
    """Return a function that runs a verb in the served project and returns what it says."""
    return partial(verb, served.root)


def test_predict_the_served_model_and_segment_remote_give_the_same_masks(
    served: Served, stackseg: Callable[..., str], stack_zyx: np.ndarray, tmp_path: Path
) -> None:
    image = tmp_path / "image.tif"
    image.write_bytes(tiff(stack_zyx, metadata={"axes": "ZYX"}))
    stackseg("predict", str(image), str(tmp_path / "predicted.tif"))
    said = stackseg("segment-remote", served.url, str(image), str(tmp_path / "remote.tif"))
    assert "7 planes by stackseg version 1" in said
    predicted_zyx = tifffile.imread(tmp_path / "predicted.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "remote.tif"), predicted_zyx)
    answer = served.answer(image.read_bytes(), output="npz")
    assert (answer["model_name"], answer["model_version"]) == (NAME, "1")
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


def test_the_bare_app_gives_the_same_mask_and_names_the_form_that_it_wants(
    served: Served, stack_zyx: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # MLflow adds the model's code to it
    with inside(served.root):
        open_store_to_read(served.root)
        model = mlflow.pyfunc.load_model(f"models:/{NAME}/1")

    def ask(body: Any) -> Any:
        schema = model.metadata.get_input_schema()
        return json.loads(scoring_server.invocations(json.dumps(body), "application/json", model, schema).response)

    image = tiff(stack_zyx[0])
    text = base64.b64encode(image).decode()
    body = request(image)
    changing = ("milliseconds",)
    bare, ours = ({**one, **dict.fromkeys(changing)} for one in (ask(body)["predictions"][0], served.answer(image)))
    assert bare == ours
    for other in ({"inputs": [text]}, {"instances": [{"image": text}]}):
        with pytest.raises(
            MlflowException, match=r"^MLflow decodes no images under inputs.*dataframe_split"
        ) as refused:
            ask(other)
        assert refused.value.get_http_status_code() == 400
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "0")
    with pytest.raises(MlflowException, match="more than 0 seconds of work") as late:
        ask(body)
    assert late.value.get_http_status_code() == 400


def test_a_new_champion_takes_over_without_a_failed_request(
    served: Served, stackseg: Callable[..., str], stack_zyx: np.ndarray
) -> None:
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
                stackseg("promote", "2", "--force", "--reason", "a test")
            else:
                stackseg("rollback")
            deadline = time.monotonic() + 300
            while not seen or seen[-1] != version:
                assert time.monotonic() < deadline, seen[-5:]
                assert requests.get(f"{served.url}/ping", timeout=10).status_code == 200
                time.sleep(0.1)
    finally:
        stop.set()
        for one in threads:
            one.join()
    assert set(seen) == {"1", "2"}
    history = stackseg("models", "--history", "--json")
    assert [word in history for word in ('"force"', '"rollback"', "a test")] == [True] * 3


def test_a_model_that_is_not_there(stackseg: Callable[..., str]) -> None:
    with pytest.raises(StoreError, match="no version or alias '9'; expected one of champion"):
        stackseg("serve", "--port", "0", "--model", "9")
    with pytest.raises(StoreError, match="2 is no alias; expected one to watch"):
        stackseg("serve", "--port", "0", "--model", "2", "--watch")
