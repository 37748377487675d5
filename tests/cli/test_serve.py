"""Addresses that cannot be listened at are found before a model is loaded."""

from __future__ import annotations

import socket

import pytest

from stackseg.errors import MachineError
from stackseg.registry.versions import Registered
from stackseg.serving.request import Limits

# MLflow's own, on being imported
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")


def told(host: str, port: int) -> str:
    from stackseg.cli.serve import run_server

    with pytest.raises(MachineError) as caught:
        # nothing is registered: whoever looked for the model first would say so
        run_server(Registered("rock", {}, {}), "champion", Limits(1, 1), host=host, port=port, watch_seconds=None)
    return caught.value.sentence()


def test_a_busy_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert told("127.0.0.1", port) == (
            f"127.0.0.1:{port}: cannot listen there (Address already in use). Name a free port by --port"
        )


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "a..b"])
def test_a_host_that_is_none_of_ours(host: str) -> None:
    assert told(host, 0).endswith("Name an address of this machine by --host")


def test_answers_do_not_wait_for_acknowledgements() -> None:
    from stackseg.cli.serve import bound

    with bound("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
