"""The served app over HTTP: answers, plain refusals, and work that ends when nobody waits for it."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import requests
import tifffile
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from served_projects import answering, request, tiff
from stackseg.dataset.files.stack import open_stack
from stackseg.errors import DataError
from stackseg.serving.request import Limits
from tiny_projects import tiny_stack

PLANE = tiny_stack(1, seed=5)[0][0]
LARGE = tiff(np.tile(PLANE, (50, 42)), compression="zlib")
"""A plane of 2000 × 2016 pixels, whose windows take seconds."""


@pytest.fixture(scope="module")
def model(trained: tuple[Any, Any]) -> Any:
    """The trained model as it is served."""
    import torch

    from stackseg.serving.app import load_model

    return load_model(trained[0].folder / "model", torch.device("cpu"), 1)


@pytest.fixture(scope="module")
def url(model: Any) -> Iterator[str]:
    with answering(model, Limits(3, 60, max_images=3)) as (address, _):
        yield address


@pytest.fixture
def large_model(model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(model, "max_megapixels", 5)
    return model


def post(url: str, image: bytes, timeout: float = 60, **params: Any) -> requests.Response:
    return requests.post(f"{url}/invocations", json=request(image, **params), timeout=timeout)


def refusal(response: requests.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    sentence = str(response.json()["error"])
    assert sentence
    assert "Traceback" not in sentence
    assert "/tmp" not in sentence
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(("path", "text"), [("ping", "\n"), ("health", "\n"), ("version", None)])
def test_the_other_routes_are_mlflows(url: str, path: str, text: str | None) -> None:
    import mlflow

    response = requests.get(f"{url}/{path}", timeout=10)
    assert (response.status_code, response.text) == (200, text or mlflow.__version__)
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/docs", 404), ("GET", "/openapi.json", 404), ("POST", "/invocations/", 404),
     ("GET", "/invocations", 405), ("GET", "/segment", 405), ("POST", "/ping", 405)],
)  # fmt: skip
def test_an_address_that_is_none(url: str, method: str, path: str, status: int) -> None:
    response = requests.request(method, f"{url}{path}", timeout=10, headers={"Host": "evil.example"})
    assert "POST /invocations, /segment; GET /ping, /health, /version, /metrics" in refusal(response, status)


def test_a_response_says_what_it_is_and_where_it_comes_from(url: str) -> None:
    answer = post(url, tiff(PLANE), output="png").json()["predictions"][0]
    assert answer["classes"] == ["void", "grain", "ore"]
    assert sum(answer["fractions"]) == pytest.approx(1, abs=1e-5)
    assert len(answer["bundle_digest"]) == 64
    assert answer["drift"]["outside"] is False
    dark, flipped = (
        post(url, image, **params).json()["predictions"][0]
        for image, params in ((tiff(PLANE // 4), {}), (tiff(PLANE), {"tta": "flips", "plane": None}))
    )
    assert dark["drift"]["outside"] is True
    assert any("median intensity" in one for one in dark["warnings"])
    assert flipped["shape"] == [1, *PLANE.shape]


def test_several_images_are_answered_in_order_in_either_form(url: str) -> None:
    images = [base64.b64encode(tiff(one)).decode() for one in (PLANE, PLANE[:32])]
    for body in (
        {"dataframe_split": {"index": [0, 1], "columns": ["image"], "data": [[one] for one in images]}},
        {"dataframe_records": [{"image": one} for one in images]},
    ):
        rows = requests.post(f"{url}/invocations", json=body, timeout=60).json()["predictions"]
        assert [one["shape"] for one in rows] == [[1, *PLANE.shape], [1, 32, PLANE.shape[1]]]


def test_a_stack_sent_plane_by_plane_comes_back_as_segment_gives_it(url: str, model: Any, tmp_path: Any) -> None:
    from stackseg.model.segment import segment
    from stackseg.serving.client import RemoteModel

    (tmp_path / "image.tif").write_bytes(tiff(tiny_stack(5, seed=6)[0], metadata={"axes": "ZYX"}))
    with open_stack(tmp_path / "image.tif") as stack:
        remote = list(RemoteModel(url, {}, 60, 2).segment(stack, None))
        assert [one.z for one in remote] == [0, 1, 2, 3, 4]
        for one, here in zip(remote, segment(stack, model.bundle), strict=True):
            np.testing.assert_array_equal(one.mask_yx, here.mask_yx)


def test_a_file_is_opened_and_decoded_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from stackseg.dataset.files.tiff import TiffPages

    calls: list[str] = []
    for name in ("__init__", "page"):
        plain = getattr(TiffPages, name)
        monkeypatch.setattr(
            TiffPages,
            name,
            lambda *args, _plain=plain, _name=name, **more: calls.append(_name) or _plain(*args, **more),
        )
    assert post(url, tiff(PLANE)).ok
    assert calls == ["__init__", "page"]


def send(url: str, image: bytes, kind: str = "image/tiff", query: str = "") -> requests.Response:
    """Send a file through the plain door."""
    return requests.post(f"{url}/segment{query}", data=image, headers={"Content-Type": kind}, timeout=60)


class TestPlainDoor:
    @pytest.mark.parametrize("kind", ["image/tiff", "image/png"])
    @pytest.mark.parametrize("output", [None, "tiff", "png", "npz"])
    def test_a_mask_is_that_of_invocations_in_the_images_form(self, url: str, kind: str, output: str | None) -> None:
        file = io.BytesIO()
        Image.fromarray(PLANE).save(file, "PNG")
        image = tiff(PLANE) if kind == "image/tiff" else file.getvalue()
        response = send(url, image, kind, f"?output={output}&tta=flips" if output else "?tta=flips")
        form = output or kind.removeprefix("image/")
        expected = post(url, image, output=form, tta="flips").json()["predictions"][0]
        assert response.status_code == 200
        assert response.headers["content-type"] == {"npz": "application/octet-stream"}.get(form, f"image/{form}")
        if form == "npz":
            with (
                np.load(io.BytesIO(response.content)) as mine,
                np.load(io.BytesIO(base64.b64decode(expected["mask"]))) as other,
            ):
                np.testing.assert_array_equal(mine["mask"], other["mask"])
        else:
            assert response.content == base64.b64decode(expected["mask"])

    def test_headers_say_where_it_comes_from(self, url: str) -> None:
        expected = post(url, tiff(PLANE // 4)).json()["predictions"][0]
        headers = send(url, tiff(PLANE // 4), "image/tiff; charset=binary").headers
        for name in ("bundle_digest", "code_digest"):
            assert headers[f"Stackseg-{name.replace('_', '-')}"] == expected[name]
        for name in ("classes", "fractions", "shape", "warnings"):
            assert json.loads(headers[f"Stackseg-{name}"]) == expected[name]
        assert expected["warnings"]
        assert "Stackseg-Num-Objects" not in headers

    @pytest.mark.parametrize("kind", ["", "application/x-www-form-urlencoded", "application/json", "image/jpeg"])
    def test_another_content_type_is_refused(self, url: str, kind: str) -> None:
        assert "Content-Type: image/tiff or image/png" in refusal(send(url, tiff(PLANE), kind), 415)

    @pytest.mark.parametrize(
        ("query", "told"),
        [
            ("outptu=png", "an unknown parameter"),
            ("tta=maybe", 'parameter "tta": a value that it cannot have'),
            ("plane=all", 'parameter "plane": a value that it cannot have; expected a whole number'),
            ("plane=9", 'parameter "plane": plane 9 of 1'),
            ("ignore_voxel_size=perhaps", "expected true or false"),
            ("probabilities=true", "probabilities in an answer of one mask; expected output=npz"),
        ],
    )
    def test_params_are_refused_as_elsewhere(self, url: str, query: str, told: str) -> None:
        sentence = refusal(send(url, tiff(PLANE), query=f"?{query}"), 400)
        assert told in sentence
        assert "maybe" not in sentence

    def test_params_of_an_address(self, url: str) -> None:
        stack = tiff(np.stack([PLANE, PLANE[::-1]]), metadata={"axes": "ZYX"})
        response = send(url, stack, query="?plane=1&output=npz&probabilities=true&ignore_voxel_size=true")
        with np.load(io.BytesIO(response.content)) as arrays:
            assert arrays["mask"].shape == (1, *PLANE.shape)
            assert arrays["probabilities"].shape == (1, 3, *PLANE.shape)

    def test_limits_are_those_of_the_other_door(self, url: str) -> None:
        assert "an empty file" in refusal(send(url, b""), 400)
        assert "neither TIFF nor PNG" in refusal(send(url, b"hello"), 400)
        large = tiff(np.zeros((1024, 1024), np.uint8), compression="zlib")
        assert "1.0 megapixels" in refusal(send(url, large), 400)
        # the server may have said no and hung up while we are still sending
        with contextlib.suppress(requests.ConnectionError):
            refusal(send(url, bytes(4_000_000)), 413)


def metrics(url: str) -> dict[str, float]:
    """Return what Prometheus reads."""
    response = requests.get(f"{url}/metrics", timeout=10)
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(response.text)
    return {
        f"{one.name}{{{','.join(one.labels.values())}}}": one.value for family in families for one in family.samples
    }


def test_metrics_count_requests_and_images(model: Any) -> None:
    with answering(model, Limits(3, 60)) as (url, _):
        assert metrics(url)["stackseg_requests_queued{}"] == 0
        refusal(post(url, b"no image"), 400)
        refusal(send(url, b"", "text/html"), 415)
        assert send(url, tiff(PLANE)).ok
        assert post(url, tiff(np.stack([PLANE // 4, PLANE // 4]), metadata={"axes": "ZYX"})).ok
        requests.get(f"{url}/ping", timeout=10)
        found = metrics(url)
    requests_by = {key: n for key, n in found.items() if key.startswith("stackseg_request_seconds_count")}
    assert requests_by == {
        "stackseg_request_seconds_count{/invocations,400}": 1,
        "stackseg_request_seconds_count{/segment,415}": 1,
        "stackseg_request_seconds_count{/segment,200}": 1,
        "stackseg_request_seconds_count{/invocations,200}": 1,
    }
    version = f",{model.bundle.digest[:12]}"
    assert found[f"stackseg_images_total{{{version}}}"] == 2
    assert found[f"stackseg_pixels_total{{{version}}}"] == 3 * PLANE.size
    assert found[f"stackseg_images_outside_total{{{version}}}"] == 1
    assert found[f"stackseg_drift_total{{median,{version}}}"] == 1
    assert found["stackseg_request_megabytes_count{}"] == 3


def forged() -> bytes:
    """Return a TIFF whose header promises terabytes."""
    image = tiff(np.zeros((4, 4), np.uint8))
    with tifffile.TiffFile(io.BytesIO(image)) as file:
        places = [file.pages.first.tags[code].valueoffset for code in (256, 257)]
    changed = bytearray(image)
    for place in places:
        changed[place : place + 4] = (1_000_000).to_bytes(4, "little")
    return bytes(changed)


class TestBadRequests:
    @pytest.mark.parametrize(
        ("image", "told"),
        [
            (b"hello world, this is text", "the image: neither TIFF nor PNG"),
            (b"\0", "the image: neither TIFF nor PNG"),
            (forged(), "the image"),
            (tiff(np.full((40, 48), np.nan, np.float32)), "the image plane 0: 1920 of 1920 pixels are NaN"),
            (tiff(np.zeros((3, 40, 48), np.uint16), metadata={"axes": "CYX"}), "the image: 3 channels; expected 1"),
            (tiff(np.zeros((1024, 1024), np.uint8), compression="zlib"), "1.0 megapixels over all planes and channels"),
            (tiff(PLANE)[:-500], "the image: "),
        ],
        ids=["text", "zero", "terabytes", "NaN", "channels", "pixels", "truncated"],
    )
    def test_images_that_cannot_be_segmented(self, url: str, image: bytes, told: str) -> None:
        assert told in refusal(post(url, image), 400)

    def test_pixels_count_as_often_as_they_are_segmented(
        self, url: str, model: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(model, "max_megapixels", PLANE.size * 3.9e-6)
        assert post(url, tiff(PLANE)).ok
        assert "over all planes, channels and the 4 turns of tta" in refusal(post(url, tiff(PLANE), tta="flips"), 400)

    def test_other_files_named_by_an_ome_header_are_not_opened(self, url: str, tmp_path: Any) -> None:
        other = tmp_path / "secret.ome.tif"
        tifffile.imwrite(other, PLANE, metadata=None, photometric="minisblack")
        xml = (
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
            '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="48" SizeY="40" SizeZ="2" SizeC="1" '
            'SizeT="1"><TiffData IFD="0" FirstZ="0" PlaneCount="1"/><TiffData FirstZ="1" IFD="0" PlaneCount="1">'
            f'<UUID FileName="{other}">urn:uuid:b</UUID></TiffData></Pixels></Image></OME>'
        )
        before = other.stat().st_atime_ns
        refusal(post(url, tiff(PLANE, metadata=None, description=xml)), 400)
        assert other.stat().st_atime_ns == before

    @pytest.mark.parametrize(
        ("body", "headers", "status"),
        [
            (b"", {"Content-Type": "application/json"}, 400),
            (b"{}", {}, 415),
            (b"image\nabc", {"Content-Type": "text/csv"}, 415),
            (b'{"inputs": ["abc"]}', {"Content-Type": "application/json"}, 400),
        ],
        ids=["empty", "no content type", "csv", "inputs"],
    )
    def test_bodies(self, url: str, body: bytes, headers: dict[str, str], status: int) -> None:
        refusal(requests.post(f"{url}/invocations", data=body, headers=headers, timeout=60), status)

    def test_a_body_that_says_that_it_is_too_large_is_not_read(self, url: str) -> None:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as connection:
            head = b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            connection.sendall(head + b"Content-Length: 200000000\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 413")

    def test_a_body_without_an_end_is_read_to_the_limit(self, url: str) -> None:
        parts = (b" " * 1_000_000 for _ in range(200))
        headers = {"Content-Type": "application/json"}
        before = psutil.Process().memory_info().rss
        try:
            response = requests.post(f"{url}/invocations", data=parts, headers=headers, timeout=60)
        except requests.ConnectionError:
            pass  # the server has said no and hung up while we were still sending
        else:
            refusal(response, 413)
        assert psutil.Process().memory_info().rss < before + 50e6

    @pytest.mark.parametrize(
        ("params", "told"),
        [
            ({"outptu": "png"}, "an unknown parameter; expected among output, probabilities, tta, plane, ignore_voxel"),
            ({"tta": "maybe"}, 'parameter "tta": a value that it cannot have; expected model, none, flips or d4'),
            ({"output": "jpeg"}, 'parameter "output": a value that it cannot have; expected png, tiff or npz'),
            ({"plane": 9}, 'parameter "plane": plane 9 of 1; expected -1 (all) or 0 to 0'),
            ({"plane": "all"}, 'parameter "plane": a value that it cannot have; expected a whole number'),
        ],
    )
    def test_params(self, url: str, params: dict[str, Any], told: str) -> None:
        sentence = refusal(post(url, tiff(PLANE), **params), 400)
        assert told in sentence
        assert "maybe" not in sentence
        assert "jpeg" not in sentence

    def test_a_failure_of_ours_gives_nothing_away(self, url: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(model, "_code", property)  # no JSON
        assert refusal(post(url, tiff(PLANE)), 500) == "the server failed; its log says more"


class TestWorkForNobody:
    """Of requests whose answers nobody waits for."""

    def test_the_work_ends_when_the_client_has_left(self, large_model: Any) -> None:
        with answering(large_model, Limits(3, 60)) as (url, cores):
            for _ in range(3):
                with pytest.raises(requests.ReadTimeout):
                    post(url, LARGE, timeout=0.5)
            started = time.monotonic()
            assert post(url, tiff(PLANE)).ok
            assert time.monotonic() - started < 2
            assert until(lambda: cores.num_submitted == 0, 2)

    def test_the_work_ends_when_its_time_is_over(self, large_model: Any) -> None:
        with answering(large_model, Limits(3, 0.5)) as (url, cores):
            assert "larger --timeout" in refusal(post(url, LARGE), 504)
            assert until(lambda: cores.num_submitted == 0, 2)

    def test_a_body_that_does_not_come_is_not_waited_for(self, model: Any) -> None:
        with (
            answering(model, Limits(3, 0.5)) as (url, _),
            socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as connection,
        ):
            head = b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            connection.sendall(head + b"Content-Length: 2000\r\n\r\n{")
            assert connection.recv(1000).startswith(b"HTTP/1.1 504")

    def test_a_full_queue_refuses_at_once(self, large_model: Any) -> None:
        with answering(large_model, Limits(3, 60, max_queued=1)) as (url, cores):
            client = threading.Thread(target=pytest.raises, args=(requests.ReadTimeout, post, url, LARGE, 2))
            client.start()
            assert until(lambda: cores.num_submitted == 1, 2)
            response = post(url, tiff(PLANE))
            assert "try again" in refusal(response, 503)
            assert int(response.headers["Retry-After"]) > 0
            client.join()
            assert until(lambda: cores.num_submitted == 0, 2)
            assert post(url, tiff(PLANE)).ok


def until(true: Callable[[], bool], seconds: float) -> bool:
    """Wait for something to come true, and return whether it did."""
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return true()


class Places:
    """Where an alias points, and the versions that are loaded for it."""

    def __init__(self) -> None:
        self.version = "1"
        self.loaded: list[str] = []

    def load(self, version: str) -> Any:
        self.loaded.append(version)
        if version == "3":
            raise DataError("damaged")

        class Version:
            label = f"rock version {version}"

        return Version()


def test_watch_exchanges_the_version_and_keeps_it_where_the_next_fails(caplog: pytest.LogCaptureFixture) -> None:
    from stackseg.serving.app import Cores, ScoringApp, Watch

    places = Places()
    first = places.load("1")
    app = ScoringApp(first, Cores(1), Limits(1, 1))
    watch = Watch(app, lambda: places.version, places.load, current="1", seconds=60)
    watch.look()
    assert app.model is first
    for version in ("2", "3", "3", "2"):
        places.version = version
        watch.look()
        assert app.model.label == "rock version 2"
    assert places.loaded == ["1", "2", "3", "3"]
    assert caplog.text.count("the new version is not served: damaged") == 1
