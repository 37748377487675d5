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


def test_an_answer_says_what_it_is_and_where_it_comes_from(served: Served, stack_zyx: np.ndarray) -> None:
    answer = served.answer(tiff(stack_zyx[0]), output="png")
    assert answer["classes"] == ["void", "grain", "ore"]
    assert sum(answer["fractions"]) == pytest.approx(1, abs=1e-5)
    assert (answer["model_name"], answer["model_version"]) == (NAME, "1")
    assert len(answer["bundle_digest"]) == 64
    assert answer["drift"]["outside"] is False
    dark = served.answer(tiff(stack_zyx[0] // 4))
    assert dark["drift"]["outside"] is True
    assert any("median intensity" in one for one in dark["warnings"])
    assert served.answer(tiff(stack_zyx[0]), tta=True)["shape"] == [1, *stack_zyx.shape[1:]]


BAD = {
    "not an image": b"hello world, this is text",
    "empty file in base64": b"\0",
    "a header that promises terabytes": tiff(np.zeros((4, 4), np.uint8)),
    "NaN": tiff(np.full((40, 48), np.nan, np.float32)),
    "wrong channels": tiff(np.zeros((3, 40, 48), np.uint16), metadata={"axes": "CYX"}),
    "too many pixels": tiff(np.zeros((1024, 1024), np.uint8), compression="zlib"),
}


class TestBadRequests:
    @pytest.mark.parametrize("name", BAD)
    def test_images_that_cannot_be_segmented(self, served: Served, name: str) -> None:
        image = BAD[name]
        if "terabytes" in name:
            with tifffile.TiffFile(io.BytesIO(image)) as file:
                tags = file.pages.first.tags
                places = [tags[code].valueoffset for code in (256, 257)]
            forged = bytearray(image)
            for place in places:
                forged[place : place + 4] = (1_000_000).to_bytes(4, "little")
            image = bytes(forged)
        response = served.ask(image)
        assert response.status_code == 400, response.text
        self.check(response)

    def test_truncated(self, served: Served, stack_zyx: np.ndarray) -> None:
        self.check(served.ask(tiff(stack_zyx)[:-500]))

    def test_other_files_named_by_an_ome_header_are_not_opened(
        self, served: Served, stack_zyx: np.ndarray, tmp_path: Path
    ) -> None:
        other = tmp_path / "secret.ome.tif"
        tifffile.imwrite(other, stack_zyx[0], metadata=None, photometric="minisblack")
        xml = (
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
            '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="48" SizeY="40" SizeZ="2" SizeC="1" '
            'SizeT="1"><TiffData IFD="0" FirstZ="0" PlaneCount="1"/><TiffData FirstZ="1" IFD="0" PlaneCount="1">'
            f'<UUID FileName="{other}">urn:uuid:b</UUID></TiffData></Pixels></Image></OME>'
        )
        before = other.stat().st_atime_ns
        self.check(served.ask(tiff(stack_zyx[0], metadata=None, description=xml)))
        assert other.stat().st_atime_ns == before

    @pytest.mark.parametrize(
        ("body", "headers", "status"),
        [
            (b"", {"Content-Type": "application/json"}, 400),
            (b"{}", {}, 415),
            (b"image\nabc", {"Content-Type": "text/csv"}, 415),
            (b'{"inputs": ["abc"]}', {"Content-Type": "application/json"}, 400),
            (b"x" * 200_000_000, {"Content-Type": "application/json"}, 413),
        ],
        ids=["empty", "no content type", "csv", "inputs", "200 MB"],
    )
    def test_bodies(self, served: Served, body: bytes, headers: dict[str, str], status: int) -> None:
        before = served.server.memory_info().rss
        try:
            response = requests.post(f"{served.url}/invocations", data=body, headers=headers, timeout=60)
        except requests.ConnectionError:
            assert status == 413  # the server has said no and hung up while we were still sending
        else:
            assert response.status_code == status
            self.check(response)
        assert served.server.memory_info().rss < before + 50e6
        assert requests.get(f"{served.url}/ping", timeout=10).status_code == 200

    @pytest.mark.parametrize(
        "params", [{"outptu": "png"}, {"tta": "maybe"}, {"output": "jpeg"}, {"plane": 9}, {"plane": "all"}]
    )
    def test_params(self, served: Served, stack_zyx: np.ndarray, params: dict[str, Any]) -> None:
        response = served.ask(tiff(stack_zyx[0]), **params)
        assert response.status_code == 400, response.text
        self.check(response)
        assert "maybe" not in response.text
        assert "jpeg" not in response.text

    def check(self, response: requests.Response) -> None:
        assert 400 <= response.status_code < 500, response.text
        assert list(response.json()) == ["error"]
        sentence = response.json()["error"]
        assert sentence
        assert "Traceback" not in sentence
        assert "/tmp" not in sentence
        assert "\n" not in sentence


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
