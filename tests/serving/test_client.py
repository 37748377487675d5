"""What is told where a server does not answer, is another, or refuses."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from databases import free_port
from stackseg.errors import StacksegError
from stackseg.serving.client import RemoteModel, encode_image
from stackseg.serving.decode import open_image
from stackseg.serving.encode import IGNORE_VOXEL_SIZE

REFUSAL = json.dumps({"error": f"the image: voxel size 9. Rescale the image; or {IGNORE_VOXEL_SIZE}"})
ANSWERS = {
    "/missing/invocations": (404, "<html>"),
    "/other/invocations": (501, "<html>"),
    "/proxy/invocations": (502, "<html>"),
    "/voxels/invocations": (400, REFUSAL),
    "/full/invocations": (200, "{}"),
}
visited: list[str] = []


class Handler(BaseHTTPRequestHandler):
    """Answers by path; any other takes long."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        full = self.path.startswith("/full") and self.path not in visited
        visited.append(self.path)
        status, body = (503, "{}") if full else ANSWERS.get(self.path) or time.sleep(1) or (200, "{}")
        self.send_response(status)
        if full:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Planes:
    def __len__(self) -> int:
        return 1

    def plane(self, z: int) -> np.ndarray:
        return np.zeros((4, 5, 1), np.uint8)


def told(url: str) -> str:
    with pytest.raises(StacksegError) as caught:
        list(RemoteModel(url, {}, 0.3, 1).segment(Planes(), None))
    return caught.value.sentence()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing", "no server of stackseg's (404 Not Found). Check the address"),
        ("other", "no server of stackseg's (501 Not Implemented). Check the address"),
        ("proxy", "plane 0 was refused (502): Bad Gateway"),
        ("voxels", "Rescale the image; or add --ignore-voxel-size"),
        ("full", "its answer is no mask of stackseg's"),
        ("slow", "the server does not answer (ReadTimeout). Wait longer by --timeout"),
    ],
)
def test_answers_that_are_no_mask(url: str, path: str, words: str) -> None:
    assert words in told(f"{url}/{path}")


@pytest.mark.parametrize("address", ["127.0.0.1:5066", "localhost:5066", "rock.example"])
def test_an_address_without_a_scheme(address: str) -> None:
    assert told(address).endswith("Begin it with http://")


@pytest.mark.parametrize("num_planes", [1, 3])
@pytest.mark.parametrize("num_channels", [1, 3, 4, 6])
def test_a_plane_with_its_neighbours_arrives_as_it_was(num_planes: int, num_channels: int) -> None:
    planes = list(np.random.default_rng(0).integers(0, 60_000, (num_planes, 8, 9, num_channels), np.uint16))
    with open_image(encode_image(planes, (1.5, 0.5, 0.25)), 1, "the image") as received:
        assert received.info.voxel_size_zyx_um == (1.5, 0.5, 0.25)
        np.testing.assert_array_equal([received.plane(z) for z in range(len(received))], planes)


def test_nobody_listens() -> None:
    assert "start it with `stackseg serve`" in told(f"http://127.0.0.1:{free_port()}").lower()
