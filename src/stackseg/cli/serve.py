"""Verbs of a served model: serve, segment-remote."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stackseg.cli.console import count_of_planes, counting, say, warn
from stackseg.cli.predict import PANEL, Axes, IgnoreVoxelSize, ModelName, Overwrite, Tta, bundle_folder, check_out
from stackseg.cli.stages import Device
from stackseg.errors import DataError, MachineError, StoreError

if TYPE_CHECKING:
    from stackseg.serving.encode import Mask
    from stackseg.serving.pyfunc import SegmentationModel


def attach(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for verb in (serve, segment_remote):
        app.command(rich_help_panel=PANEL)(verb)


def serve(
    model: ModelName = "champion",
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 for all, behind a proxy of yours.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen at; 0 takes a free one.")] = 5001,
    watch: Annotated[bool, typer.Option("--watch", help="When the alias moves, serve the new version.")] = False,
    watch_seconds: Annotated[float, typer.Option(min=0.1, help="How often --watch looks.")] = 2.0,
    max_megabytes: Annotated[float, typer.Option(min=0.001, help="Largest body of a request.")] = 64,
    max_megapixels: Annotated[
        float, typer.Option(min=0.001, help="Largest image, over planes, channels and turns of tta.")
    ] = 64,
    timeout: Annotated[int, typer.Option(min=1, help="Seconds that a request may take.")] = 60,
    device: Device = "auto",
) -> None:
    """Serve a model over HTTP: requests and answers are MLflow's, with limits, plain refusals and --watch.

    POST /invocations; GET /ping, /health, /version, /metrics (Prometheus); POST /segment takes a file as it is, e.g.
    curl -H "Content-Type: image/tiff" --data-binary @plane.tif http://127.0.0.1:5001/segment -o mask.tif. One request
    alone uses all cores, several use one each.
    """
    with bound(host, port) as listener:
        if watch and (model.isdecimal() or model.startswith("models:/") or Path(model).is_dir()):
            raise StoreError(
                f"{model} is no alias",
                expected="one to watch",
                where="--model",
                remedy="name an alias, or leave out --watch",
            )

        import uvicorn

        from stackseg.model.devices import num_cores, pick_device
        from stackseg.registry.versions import bundle_at
        from stackseg.serving.app import Cores, ScoringApp, Watch, load_model, warm_up
        from stackseg.serving.request import Limits

        on, cores = pick_device(device), Cores(num_cores())
        with bundle_folder(model) as folder:
            loaded = load_model(folder, on, max_megapixels)
        cores.run_everywhere(lambda: warm_up(loaded))
        scoring = ScoringApp(loaded, cores, Limits(max_megabytes, timeout))
        if watch:
            from mlflow.tracking import MlflowClient

            name, client = str(loaded.name), MlflowClient()

            def load_warm(version: str) -> SegmentationModel:
                uri = f"models:/{name}/{version}"
                with bundle_at(uri, uri) as folder:
                    other = load_model(folder, on, max_megapixels)
                cores.submit(lambda: warm_up(other)).result()
                return other

            Watch(
                scoring,
                lambda: str(client.get_model_version_by_alias(name, model).version),
                load_warm,
                current=str(loaded.version),
                seconds=watch_seconds,
            ).start()
        # it listens already: whoever asks from now on is answered
        address = "http://{}:{}".format(*listener.getsockname()[:2])
        limits = f"bodies to {max_megabytes:g} MB, images to {max_megapixels:g} megapixels"
        say(f"serving {loaded.label} at {address} ({limits})")
        say(f"next: stackseg segment-remote {address} IN.tif OUT.tif")
        uvicorn.Server(uvicorn.Config(scoring.asgi(), log_level="info", access_log=False)).run([listener])


def segment_remote(
    url: Annotated[str, typer.Argument(help="Address of the server, e.g. http://127.0.0.1:5001.")],
    image: Annotated[Path, typer.Argument(metavar="IN", help="A TIFF, PNG, OME-Zarr, or a folder of slices.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The mask TIFF to write.")],
    overwrite: Overwrite = False,
    axes: Axes = None,
    tta: Tta = None,
    ignore_voxel_size: IgnoreVoxelSize = False,
    in_flight: Annotated[int, typer.Option(min=1, max=64, help="Requests under way at a time.")] = 4,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for an answer.")] = 60,
) -> None:
    """Have a stack segmented by a served model, plane by plane."""
    from stackseg.dataset.files.inputs import open_input
    from stackseg.intake.write_tiff import write_stack
    from stackseg.serving.client import RemoteModel

    check_out(image, out, overwrite)
    asked = {"ignore_voxel_size": ignore_voxel_size} | ({} if tta is None else {"tta": tta})
    remote = RemoteModel(url, asked, timeout, in_flight)
    with open_input(image, axes=axes) as stack, counting("segmenting") as progress:
        planes = remote.segment(stack, stack.info.voxel_size_zyx_um)
        first = next(planes)
        described = first.response
        for sentence in described["warnings"]:
            warn(f"{image}: {sentence}")

        def masks() -> Iterator[Mask]:
            for plane in chain([first], planes):
                if plane.response["bundle_digest"] != described["bundle_digest"]:
                    raise DataError(
                        f"the server changed its model to {plane.response['bundle_digest'][:12]} at plane {plane.z}",
                        expected=f"{described['bundle_digest'][:12]} for the whole stack",
                        where=url,
                        remedy="run the same command again",
                    )
                yield plane.mask_yx
                progress(plane.z + 1, len(stack))

        write_stack(
            out,
            masks(),
            num_planes=len(stack),
            voxel_size_zyx_um=stack.info.voxel_size_zyx_um,
            # earlier versions know no objects; numbers of objects have no colours
            colours=[] if described.get("num_objects") else described["colours"],
        )
    version = f" version {described['model_version']}" if described["model_version"] else ""
    by = f"{described['model_name'] or 'a model'}{version}, bundle {described['bundle_digest'][:12]}"
    say(f"{out}: {count_of_planes(len(stack))} by {by}")


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
