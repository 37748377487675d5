"""Addresses that cannot be listened at are found before a model is looked for."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stackseg.cli.main import app
from stackseg.cli.serve import bound
from stackseg.errors import MachineError


def told(host: str, port: int) -> str:
    with pytest.raises(MachineError) as caught:
        bound(host, port)
    return caught.value.sentence()


def test_a_busy_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # there is not even a params.yaml: whoever looked for the model first would say so
        error = CliRunner().invoke(app, ["serve", "--port", str(port)]).exception
    assert str(error) == f"127.0.0.1:{port}: cannot listen there (Address already in use). Name a free port by --port"


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "a..b"])
def test_a_host_that_is_none_of_ours(host: str) -> None:
    assert told(host, 0).endswith("Name an address of this machine by --host")


def test_answers_do_not_wait_for_acknowledgements() -> None:
    with bound("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
