"""Downloads from a server that breaks off, moves files, or serves others than before."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stackseg.errors import DataError, MachineError
from stackseg.recipes.download import ATTEMPTS, download

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000).astype(np.uint8).tobytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at /file.bin, whole or from a byte on; the first `breaks` answers end after a third."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.breaks = 0
        self.asked: list[str | None] = []
        self.knows_ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.path != "/file.bin":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.knows_ranges else 0
        rest = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if self.server.breaks:
            self.server.breaks -= 1
            rest = rest[: len(rest) // 3]
        self.wfile.write(rest)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as one:
        thread = threading.Thread(target=one.serve_forever)
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def test_a_download_that_breaks_off_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    server.breaks = 2
    seen: list[tuple[int, int]] = []
    urls = {"below/file.bin": server.url}
    assert download(urls, {}, tmp_path, lambda *one: seen.append(one)) == {"below/file.bin": SHA256}
    assert server.asked == [None, "bytes=100000-", "bytes=166666-"]
    assert (tmp_path / "below" / "file.bin").read_bytes() == CONTENT
    assert [one.name for one in (tmp_path / "below").iterdir()] == ["file.bin"]
    assert seen == [(0, 1), (1, 1)]
    assert download(urls, {"below/file.bin": SHA256}, tmp_path) == {"below/file.bin": SHA256}
    assert len(server.asked) == 3  # what is there is not fetched again


def test_what_is_left_waits_for_the_next_try(server: Server, tmp_path: Path) -> None:
    server.breaks = ATTEMPTS
    with pytest.raises(MachineError, match=r"file\.bin: the download fails .*goes on where it broke off"):
        download({"file.bin": server.url}, {}, tmp_path)
    assert not (tmp_path / "file.bin").exists()
    assert download({"file.bin": server.url}, {}, tmp_path) == {"file.bin": SHA256}
    assert server.asked[-1] is not None


def test_a_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    server.breaks, server.knows_ranges = 1, False
    assert download({"file.bin": server.url}, {}, tmp_path) == {"file.bin": SHA256}


def test_another_file_than_the_one_that_is_known_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"file\.bin: a file with another checksum than recorded \(0000.*sources\.yaml"):
        download({"file.bin": server.url}, {"file.bin": "0" * 64}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_has_moved_is_named_by_its_address(server: Server, tmp_path: Path) -> None:
    gone = server.url.replace("file.bin", "old.bin")
    with pytest.raises(DataError, match=r"old\.bin: the server answers 404 .*--from DIR"):
        download({"old.bin": gone}, {}, tmp_path)
    assert len(server.asked) == 1


def test_no_server_at_all(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"the download fails \(ConnectionError"):
        download({"f": "http://127.0.0.1:9/f"}, {}, tmp_path)
