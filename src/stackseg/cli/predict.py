"""Verbs that use a model: predict, serve, segment-remote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stackseg.cli.console import counting, say, swatch, table, warn
from stackseg.cli.project import load_params
from stackseg.cli.stages import Device
from stackseg.cli.store import ready_registry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from stackseg.dataset.files.axes import VoxelSize
    from stackseg.model.bundle import Bundle

PANEL = "Using a model"

ModelName = Annotated[
    str, typer.Option("--model", help="champion, another alias, a version, models:/… or the folder of a bundle.")
]
IgnoreVoxelSize = Annotated[
    bool, typer.Option("--ignore-voxel-size", help="Segment even if the voxel size is off by more than a factor of 2.")
]
Tta = Annotated[bool, typer.Option("--tta", help="Average over four flips: slower, and not what was scored.")]


def attach(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for verb in (predict, serve, segment_remote):
        app.command(rich_help_panel=PANEL)(verb)


def predict(
    image: Annotated[Path, typer.Argument(metavar="IN", help="A TIFF or PNG: one plane or a stack.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The mask TIFF to write; Fiji shows its classes' colours.")
    ],
    model: ModelName = "champion",
    axes: Annotated[str | None, typer.Option(help="The file's dimensions, e.g. ZYX, if they are ambiguous.")] = None,
    tta: Tta = False,
    ignore_voxel_size: IgnoreVoxelSize = False,
    device: Device = "auto",
) -> None:
    """Segment a stack with a registered model: class indices, plane by plane.

    It is the function that was scored and that is served. Intensities, noise and voxel size that lie outside the
    training part's are warned about.
    """
    from stackseg.dataset.files.stack import open_stack
    from stackseg.model.bundle import load_bundle
    from stackseg.model.devices import pick_device
    from stackseg.model.segment import segment
    from stackseg.serving.drift import measure_drift, require_voxel_size

    _check_out(image, out)
    with open_stack(image, axes=axes) as stack, _bundle_folder(model) as folder:
        bundle = load_bundle(folder, pick_device(device))
        spec = bundle.spec
        if spec is None:
            raise TypeError("a loaded bundle has a spec")
        for note in stack.info.notes:
            say(f"{image}: {note}")
        with _naming(image):
            drift = measure_drift(stack, stack.info.voxel_size_zyx_um, spec)
        if not ignore_voxel_size:
            require_voxel_size(drift, where=str(image), remedy="or add --ignore-voxel-size")
        for sentence in drift.sentences():
            warn(f"{image}: {sentence}")
        masks = (plane.mask_yx for plane in segment(stack, bundle, tta=tta))
        _write(out, masks, len(stack), stack.info.voxel_size_zyx_um, bundle)
    say(f"{out}: {len(stack)} planes by bundle {bundle.digest[:12]}")


def segment_remote(
    url: Annotated[str, typer.Argument(help="Address of the server, e.g. http://127.0.0.1:5001.")],
    image: Annotated[Path, typer.Argument(metavar="IN", help="A TIFF or PNG: one plane or a stack.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The mask TIFF to write.")],
    axes: Annotated[str | None, typer.Option(help="The file's dimensions, e.g. ZYX, if they are ambiguous.")] = None,
    tta: Tta = False,
    ignore_voxel_size: IgnoreVoxelSize = False,
    in_flight: Annotated[int, typer.Option(min=1, max=64, help="Requests under way at a time.")] = 4,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for an answer.")] = 60,
) -> None:
    """Have a stack segmented by a served model, plane by plane."""
    from itertools import chain

    from stackseg.dataset.files.stack import open_stack
    from stackseg.dataset.files.write_tiff import write_stack
    from stackseg.errors import DataError
    from stackseg.serving.client import Remote

    _check_out(image, out)
    remote = Remote(url, {"tta": tta, "ignore_voxel_size": ignore_voxel_size}, timeout, in_flight)
    with open_stack(image, axes=axes) as stack, counting("segmenting") as progress:
        planes = remote.segment(stack, stack.info.voxel_size_zyx_um)
        first = next(planes)
        told = first.answer
        for sentence in told["warnings"]:
            warn(f"{image}: {sentence}")

        def masks() -> Iterator[npt.NDArray[np.uint8]]:
            for plane in chain([first], planes):
                if plane.answer["bundle_digest"] != told["bundle_digest"]:
                    raise DataError(
                        f"the server changed its model to {plane.answer['bundle_digest'][:12]} at plane {plane.z}",
                        expected=f"{told['bundle_digest'][:12]} for the whole stack",
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
            colours=told["colours"],
        )
    version = f" version {told['model_version']}" if told["model_version"] else ""
    say(
        f"{out}: {len(stack)} planes by {told['model_name'] or 'a model'}{version}, bundle {told['bundle_digest'][:12]}"
    )


def serve(
    model: ModelName = "champion",
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 for all, behind a proxy of yours.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen at; 0 takes a free one.")] = 5001,
    watch: Annotated[bool, typer.Option("--watch", help="When the alias moves, serve the new version.")] = False,
    watch_seconds: Annotated[float, typer.Option(min=0.1, help="How often --watch looks.")] = 2.0,
    max_megabytes: Annotated[float, typer.Option(min=0.001, help="Largest body of a request.")] = 64,
    max_megapixels: Annotated[float, typer.Option(min=0.001, help="Largest image, over planes and channels.")] = 64,
    timeout: Annotated[int, typer.Option(min=1, help="Seconds that a request may take.")] = 60,
    device: Device = "auto",
) -> None:
    """Serve a model over HTTP: MLflow's scoring app in one process, with limits, plain refusals and --watch.

    POST /invocations; GET /ping, /health, /version. One request alone uses all cores, several use one each.
    """
    import os

    from stackseg.cli.serve import run_server
    from stackseg.serving.request import Limits

    # MLflow's app and the model read these when they are made
    os.environ["MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"] = str(timeout)
    os.environ["STACKSEG_DEVICE"] = device
    _, known = ready_registry(load_params())
    run_server(
        known,
        model,
        Limits(max_megabytes=max_megabytes, max_megapixels=max_megapixels),
        host=host,
        port=port,
        watch_seconds=watch_seconds if watch else None,
    )


@contextmanager
def _bundle_folder(model: str) -> Iterator[Path]:
    """Yield the folder of the bundle that is meant: a folder of this machine, or one from the registry."""
    from stackseg.registry.versions import bundle_at, find, uri_of

    if Path(model).is_dir():
        yield Path(model)
        return
    _, known = ready_registry(load_params())
    if model.startswith("models:/"):
        uri = called = model
    else:
        version = known.versions[find(known, model)]
        uri, called = str(version.source), uri_of(version)
    with bundle_at(uri, called) as folder:
        yield folder


@contextmanager
def _naming(image: Path) -> Iterator[None]:
    """Name the file in an error that names a plane of it at most."""
    from stackseg.errors import DataError

    try:
        yield
    except DataError as error:
        if str(image) in error.where:
            raise
        where = f"{image} {error.where}".rstrip()
        raise DataError(error.found, expected=error.expected, where=where, remedy=error.remedy) from None


def _write(
    out: Path, masks: Iterator[npt.NDArray[np.uint8]], num_planes: int, voxel_size: VoxelSize | None, bundle: Bundle
) -> None:
    import numpy as np

    from stackseg.dataset.files.write_tiff import write_stack

    classes = bundle.inference.classes
    pixels = np.zeros(len(classes), np.int64)
    with counting("segmenting") as progress:

        def counted() -> Iterator[npt.NDArray[np.uint8]]:
            for done, mask_yx in enumerate(masks):
                np.add(pixels, np.bincount(mask_yx.ravel(), minlength=len(classes)), out=pixels)
                yield mask_yx
                progress(done + 1, num_planes)

        colours = [one.display for one in classes]
        write_stack(out, counted(), num_planes=num_planes, voxel_size_zyx_um=voxel_size, colours=colours)
    rows = [
        (index, one.name, swatch(one.display), f"{share:.4f}")
        for index, (one, share) in enumerate(zip(classes, pixels / max(1, pixels.sum()), strict=True))
    ]
    table(str(out), ("value", "class", "colour", "share"), rows)


def _check_out(image: Path, out: Path) -> None:
    from stackseg.errors import DataError

    if out.suffix.lower() not in (".tif", ".tiff"):
        raise DataError(f"a file named {out.name}", expected="a name ending in .tif", where="OUT")
    if out.exists() and image.exists() and out.samefile(image):
        raise DataError("the mask would replace the image", where=str(out), remedy="name another file")
