"""Run the served app: find the version, listen, and watch the alias."""

from __future__ import annotations

import errno
import os
import socket

import uvicorn
from mlflow.tracking import MlflowClient

from stackseg.cli.console import say
from stackseg.errors import MachineError, StoreError
from stackseg.model.devices import num_cores
from stackseg.registry.versions import Registered, find
from stackseg.serving.app import Cores, Exchangeable, Loaded, Watch, build_app, load_version
from stackseg.serving.request import Limits


def run_server(
    known: Registered, model: str, limits: Limits, *, host: str, port: int, watch_seconds: float | None
) -> None:
    """Serve a version until interrupted.

    Parameters
    ----------
    known
        What is registered.
    model
        Alias or version of it, or an address that MLflow understands.
    limits
        Of requests.
    host, port
        Where to listen; port 0 takes a free one.
    watch_seconds
        How often to look whether the alias has moved; None for never.

    Raises
    ------
    MachineError
        The address is taken, or none of this machine's.
    StoreError
        There is no such version, or what is to be watched is no alias.
    """
    listener = bound(host, port)
    cores = Cores(num_cores())

    def load(version: str) -> Loaded:
        return load_version(f"models:/{known.name}/{version}", f"{known.name} version {version}", limits)

    def load_warm(version: str) -> Loaded:
        found = load(version)
        cores.run(found.warm)
        return found

    if watch_seconds is not None and model not in known.aliases:
        raise StoreError(
            f"{model} is no alias",
            expected="one to watch",
            where="--model",
            remedy="name an alias, or leave out --watch",
        )
    if model.startswith("models:/"):
        loaded, version = load_version(model, model, limits), ""
    else:
        version = find(known, model)
        loaded = load(version)
    cores.run_everywhere(loaded.warm)
    exchangeable = Exchangeable(loaded, cores)
    if watch_seconds is not None:
        client = MlflowClient()
        Watch(
            exchangeable,
            lambda: str(client.get_model_version_by_alias(known.name, model).version),
            load_warm,
            now=version,
            seconds=watch_seconds,
        ).start()
    config = uvicorn.Config(build_app(exchangeable, limits), log_level="info", access_log=False)
    _Announced(config, loaded.label, limits).run([listener])


def bound(host: str, port: int) -> socket.socket:
    """Take the address before the model is loaded, which would be in vain for one that cannot be had.

    Whoever asks meanwhile waits until it is loaded.
    """
    where, family = f"{host}:{port}", socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        (*_, address), *_ = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        listener = socket.create_server(address, family=family)
    except (socket.gaierror, UnicodeError):
        raise MachineError("no such host", where=where, remedy="name an address of this machine by --host") from None
    except OSError as error:
        foreign = error.errno == errno.EADDRNOTAVAIL
        raise MachineError(
            f"cannot listen there ({os.strerror(error.errno or 0)})",
            where=where,
            remedy="name an address of this machine by --host" if foreign else "name a free port by --port",
        ) from None
    # asyncio does so for the sockets that it makes itself; without, each answer waits 40 ms for an acknowledgement
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class _Announced(uvicorn.Server):
    """Says where it listens once it does, with what to type next."""

    def __init__(self, config: uvicorn.Config, label: str, limits: Limits) -> None:
        super().__init__(config)
        self._label = label
        self._limits = limits

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        if not self.started:
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        limits = f"bodies to {self._limits.max_megabytes:g} MB, images to {self._limits.max_megapixels:g} megapixels"
        say(f"serving {self._label} at http://{host}:{port} ({limits})")
        say(f"next: stackseg segment-remote http://{host}:{port} IN.tif OUT.tif")
