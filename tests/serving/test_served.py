"""A registered version behind a real server: equal masks, plain refusals, and a champion that changes meanwhile."""

from __future__ import annotations

import base64
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
import tifffile

from tiny_projects import make_tiny_project, tiny_stack

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")]

BIN = Path(sys.executable).parent
NAME = "stackseg"


@dataclass(frozen=True)
class Served:
    """A project with two registered versions, and a server of its champion."""

    root: Path
    url: str
    server: psutil.Process
    env: dict[str, str]

    def run(self, *command: str, ok: bool = True) -> str:
        done = subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=self.root,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done.stdout + done.stderr

    def ask(self, image: bytes, **params: Any) -> requests.Response:
        return requests.post(f"{self.url}/invocations", json=request(image, **params), timeout=60)

    def answer(self, image: bytes, **params: Any) -> dict[str, Any]:
        response = self.ask(image, **params)
        assert response.status_code == 200, response.text
        return dict(response.json()["predictions"][0])


def request(image: bytes, **params: Any) -> dict[str, Any]:
    text = base64.b64encode(image).decode()
    return {"dataframe_split": {"columns": ["image"], "data": [[text]]}, "params": params}


def tiff(image: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, image, photometric="minisblack", **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project whose registry holds two versions, the first being champion."""
    root = tmp_path_factory.mktemp("served") / "project"
    for seed, name in ((1, "model"), (2, "model2")):
        tiny = make_tiny_project(root, {"seed": seed, "model.context_slices": 1, "train.epochs": 2})
        tiny.train(name)
    (root / "params.yaml").write_text("format: 1\n")
    (root / "dvc.yaml").write_text("stages: {}\n")
    script = (
        "import mlflow, sys\n"
        "from pathlib import Path\n"
        "from mlflow.tracking import MlflowClient\n"
        "from stackseg.learning.bundle import read_spec\n"
        "from stackseg.lifecycle.store import prepare_store\n"
        "from stackseg.serving.packaging import log_bundle\n"
        "ready = prepare_store(Path.cwd(), experiment='stackseg')\n"
        "client = MlflowClient()\n"
        f"client.create_registered_model('{NAME}')\n"
        "for name in ('model', 'model2'):\n"
        "    with mlflow.start_run(experiment_id=ready.experiment_id) as run:\n"
        "        info = log_bundle(Path(name), read_spec(Path(name)))\n"
        f"    client.create_model_version('{NAME}', f'models:/{{info.model_id}}', model_id=info.model_id)\n"
        f"client.set_registered_model_alias('{NAME}', 'champion', '1')\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=root, env=environment(), check=True)
    return root


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_"))}
    # no pickle is needed anywhere
    return kept | {"STACKSEG_DEVICE": "cpu", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}


@pytest.fixture(scope="module")
def served(project: Path) -> Iterator[Served]:
    command = [
        str(BIN / "stackseg"),
        "serve",
        "--port",
        "0",
        "--watch",
        "--watch-seconds",
        "0.3",
        "--max-megabytes",
        "3",
    ]
    log = (project / "serve.log").open("w+")
    server = subprocess.Popen(
        [*command, "--max-megapixels", "1"], cwd=project, env=environment(), stdout=log, stderr=log
    )
    try:
        deadline = time.monotonic() + 120
        while "next: stackseg segment-remote " not in (said := (project / "serve.log").read_text()):
            assert server.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.2)
        url = said.partition("next: stackseg segment-remote ")[2].split()[0]
        yield Served(project, url, psutil.Process(server.pid), environment())
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(30) in (0, 130)
        log.close()


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
