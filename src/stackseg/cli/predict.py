"""Segment a stack by a model of this machine or of the registry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from stackseg.cli.console import count_of_planes, counting_pixels, say, swatch, table, warn
from stackseg.cli.project import load_params, registry_to_load
from stackseg.cli.stages import Device
from stackseg.errors import MachineError, ParamsError

PANEL = "Using a model"

ModelName = Annotated[
    str, typer.Option("--model", help="champion, another alias, a version, models:/… or the folder of a bundle.")
]
IgnoreVoxelSize = Annotated[
    bool, typer.Option("--ignore-voxel-size", help="Segment even if the voxel size is off by more than a factor of 2.")
]
Axes = Annotated[str | None, typer.Option(help="The file's dimensions, e.g. ZYX, if they are ambiguous.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is there.")]
Tta = Annotated[
    Literal["none", "flips", "d4"] | None,
    typer.Option(help="Average over flips (4 times as long) or turns, too (8). Default: as the model was scored."),
]


def attach(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(rich_help_panel=PANEL)(predict)


def predict(
    image: Annotated[Path, typer.Argument(metavar="IN", help="A TIFF, PNG, OME-Zarr, or a folder of slices.")],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT",
            help="The mask to write: classes in their colours, or a number for each object. By its name a .tif, "
            ".ome.tif or .zarr, otherwise a folder of PNGs.",
        ),
    ],
    model: ModelName = "champion",
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write OUT_probabilities, too: 0 to 255 for each class.")
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Write OUT_uncertainty, too: entropy of the classes, 0 to 255.")
    ] = False,
    slices: Annotated[
        str | None, typer.Option(metavar="A:B", help="Segment the planes from A to B - 1 only, counted from 0.")
    ] = None,
    min_object: Annotated[
        int, typer.Option(min=0, metavar="N", help="Give pieces of fewer pixels to the class around them.")
    ] = 0,
    fill_holes: Annotated[
        bool, typer.Option("--fill-holes", help="Fill holes of the first class inside another class.")
    ] = False,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an earlier call was broken off (.zarr and folders).")
    ] = False,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Segment the Ith of N shares of the planes, as N calls on a cluster do; the last to end puts OUT in "
            "its place (.zarr and folders).",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Segment by so many processes of this machine, which share its cores (Dask)."),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Segment by the workers of a Dask scheduler, e.g. tcp://node1:8786 (.zarr, folders).",
        ),
    ] = None,
    axes: Axes = None,
    level: Annotated[
        int, typer.Option(min=0, help="Level of an OME-Zarr's pyramid: 0 is the full size, 1 the next smaller.")
    ] = 0,
    tta: Tta = None,
    orthogonal: Annotated[
        bool | None,
        typer.Option(
            "--orthogonal/--planes",
            help="Average over xy, xz and yz sections, for voxels with equal sides. Default: as the model was scored.",
        ),
    ] = None,
    ignore_voxel_size: IgnoreVoxelSize = False,
    runtime: Annotated[
        Literal["torch", "onnxruntime", "openvino"] | None,
        typer.Option(help="What computes the network; on CPUs OpenVINO is often fastest. Default: as the model says."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Segment a stack with a registered model: class indices, or numbers of objects, plane by plane.

    It is the function that was scored and that is served. Intensities, noise and voxel size that lie outside the
    training part's are warned about.
    """
    from stackseg.dataset.files.inputs import open_input
    from stackseg.dataset.slices import planes_of
    from stackseg.model.bundle import load_bundle
    from stackseg.model.devices import pick_device
    from stackseg.model.orthogonal import require_isotropic
    from stackseg.prediction.outputs import parse_share, plan_outputs, require_free
    from stackseg.prediction.run import Options
    from stackseg.prediction.run import predict as predict_into
    from stackseg.serving.decode import naming
    from stackseg.serving.drift import measure_drift, require_voxel_size

    outputs = plan_outputs(out, probabilities=probabilities, uncertainty=uncertainty)
    share = parse_share(part)
    in_tasks = workers is not None or scheduler is not None
    given = [name for name, value in (("--part", part), ("--workers", workers), ("--scheduler", scheduler)) if value]
    if len(given) > 1:
        raise ParamsError(" and ".join(given), expected="one of them", remedy="leave the others out")
    if in_tasks:
        require_distributed()
    require_free(outputs, image, overwrite=overwrite, resume=resume or part is not None, shared=bool(given))
    reference = name_of(model)
    with open_input(image, axes=axes, level=level) as stack, bundle_folder(reference) as folder:
        planes = planes_of(slices, len(stack))
        bundle = load_bundle(folder, pick_device(device), runtime)
        for note in stack.info.notes:
            say(f"{image}: {note}")
        with naming(str(image)):
            drift = measure_drift(stack, stack.info.voxel_size_zyx_um, bundle.spec)
        if not ignore_voxel_size:
            require_voxel_size(drift, where=str(image), remedy="or add --ignore-voxel-size")
        for sentence in drift.sentences():
            warn(f"{image}: {sentence}")
        if bundle.inference.orthogonal if orthogonal is None else orthogonal:
            if given:
                raise ParamsError(
                    "sections across go through all planes",
                    where=given[0],
                    remedy=f"leave {given[0]} out, or segment planes alone by --planes",
                )
            require_isotropic(stack.info.voxel_size_zyx_um, str(image))
            say("all sections are computed before the first plane is written")
        options = Options(tta, slices, min_object, fill_holes, orthogonal)
        with counting_pixels("segmenting") as progress:
            if in_tasks:
                from stackseg.prediction.cluster import Call, predict_on_cluster  # not every installation has Dask's

                call = Call(image.resolve(), axes, level, outputs.absolute(), options, device, runtime, reference)
                with _scheduler(scheduler, workers) as address:
                    done = predict_on_cluster(address, folder, call, planes, progress)
            else:
                done = predict_into(
                    stack,
                    bundle,
                    outputs,
                    options,
                    voxel_size_zyx_um=stack.info.voxel_size_zyx_um,
                    model=reference,
                    resume=resume,
                    share=share,
                    progress=progress,
                )
    rows = [
        (index, one.name, swatch(one.display), f"{pixels / max(1, sum(done.pixels)):.4f}")
        for index, (one, pixels) in enumerate(zip(bundle.inference.classes, done.pixels, strict=True))
    ]
    title = f"{out}, part {part} of its planes" if part else out
    table(title, ("value", "class", "colour", "share"), rows)
    if bundle.inference.instances:
        say(f"{out} numbers the objects of each plane from 1: {done.num_objects} in all")
    for path in done.large:
        say(f"{path} has more than 4 GB of pixels and is an OME-BigTIFF: Fiji opens it by Bio-Formats")
    before = f", {done.num_resumed} of them from before" if done.num_resumed else ""
    told = f"{count_of_planes(done.num_planes)} by bundle {bundle.digest[:12]}{before}"
    if part:
        say(f"part {part}: {told}")
        told = f"whole, all {share.of} parts are there"
    if done.num_waiting:
        say(f"{out} is there once all parts are: {done.num_waiting} of {share.of} are still to come")
    for path in done.written:
        say(f"{path}: {told}")


def require_distributed() -> None:
    """Raise MachineError if Dask's scheduler is not installed."""
    if find_spec("distributed") is None:
        raise MachineError("Dask's scheduler is not installed", remedy='`pip install "stackseg[dask]"` installs it')


@contextmanager
def _scheduler(address: str | None, num_workers: int | None) -> Iterator[str]:
    from stackseg.prediction.cluster import local_cluster

    if address is not None:
        yield address
        return
    with local_cluster(num_workers or 1) as own:
        yield own


def name_of(model: str) -> str:
    """Return which bundle is meant: a folder of this machine, or the address of a version in the registry."""
    from stackseg.registry.versions import find, uri_of

    if Path(model).is_dir() or model.startswith("models:/"):
        return model
    known = registry_to_load(load_params())
    # by name and version, so that the answers can say them
    return uri_of(known.versions[find(known, model)])


@contextmanager
def bundle_folder(model: str) -> Iterator[Path]:
    """Yield the folder of the bundle that is meant: a folder of this machine, or one from the registry."""
    from stackseg.registry.versions import bundle_at

    if Path(model).is_dir():
        yield Path(model)
        return
    uri = name_of(model)
    with bundle_at(uri, uri) as folder:
        yield folder


def check_out(image: Path, out: Path, overwrite: bool) -> None:
    """Raise DataError if a mask may not be written there."""
    from stackseg.errors import DataError

    if out.suffix.lower() not in (".tif", ".tiff"):
        raise DataError(f"a file named {out.name}", expected="a name ending in .tif", where="OUT")
    if out.exists() and image.exists() and out.samefile(image):
        raise DataError("the mask would replace the image", where=str(out), remedy="name another file")
    if out.exists() and not overwrite:
        raise DataError("the file is there already", where=str(out), remedy="name another, or add --overwrite")
