"""Segment a stack by a model of this machine or of the registry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stackseg.cli.console import counting, say, swatch, table, warn
from stackseg.cli.project import load_params, registry_to_load
from stackseg.cli.stages import Device

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

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
    image: Annotated[Path, typer.Argument(metavar="IN", help="A TIFF or PNG: one plane or a stack.")],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="The mask TIFF to write: classes in their colours, or a number for each object."
        ),
    ],
    model: ModelName = "champion",
    overwrite: Overwrite = False,
    axes: Axes = None,
    tta: Tta = None,
    ignore_voxel_size: IgnoreVoxelSize = False,
    device: Device = "auto",
) -> None:
    """Segment a stack with a registered model: class indices, or numbers of objects, plane by plane.

    It is the function that was scored and that is served. Intensities, noise and voxel size that lie outside the
    training part's are warned about.
    """
    import numpy as np

    from stackseg.dataset.files.stack import open_stack
    from stackseg.intake.write_tiff import write_stack
    from stackseg.model.bundle import load_bundle
    from stackseg.model.devices import pick_device
    from stackseg.model.segment import segment
    from stackseg.serving.decode import naming
    from stackseg.serving.drift import measure_drift, require_voxel_size

    check_out(image, out, overwrite)
    with open_stack(image, axes=axes) as stack, bundle_folder(model) as folder:
        bundle = load_bundle(folder, pick_device(device))
        spec = bundle.spec
        for note in stack.info.notes:
            say(f"{image}: {note}")
        with naming(str(image)):
            drift = measure_drift(stack, stack.info.voxel_size_zyx_um, spec)
        if not ignore_voxel_size:
            require_voxel_size(drift, where=str(image), remedy="or add --ignore-voxel-size")
        for sentence in drift.sentences():
            warn(f"{image}: {sentence}")
        classes, instances = bundle.inference.classes, bundle.inference.instances
        pixels = np.zeros(len(classes), np.int64)
        objects: list[int] = []
        with counting("segmenting") as progress:

            def masks() -> Iterator[npt.NDArray[np.unsignedinteger]]:
                for done, plane in enumerate(segment(stack, bundle, objects=True, tta=tta), start=1):
                    np.add(pixels, np.bincount(plane.mask_yx.ravel(), minlength=len(classes)), out=pixels)
                    if plane.objects_yx is None:
                        yield plane.mask_yx
                    else:
                        objects.append(int(plane.objects_yx.max()))
                        yield plane.objects_yx.astype(np.uint32)
                    progress(done, len(stack))

            write = partial(write_stack, num_planes=len(stack), voxel_size_zyx_um=stack.info.voxel_size_zyx_um)
            if not instances:
                write(out, masks(), colours=[one.display for one in classes])
            else:
                # few programs read 32 bits, and how many objects there are is known at the end only
                wide = out.with_name(f".{out.name}.wide.tif")
                try:
                    write(wide, masks())
                    dtype = np.uint16 if max(objects) <= np.iinfo(np.uint16).max else np.uint32
                    with open_stack(wide, axes="ZYX") as labels:
                        write(out, (labels.plane(z)[:, :, 0].astype(dtype) for z in range(len(labels))))
                finally:
                    wide.unlink(missing_ok=True)
    rows = [
        (index, one.name, swatch(one.display), f"{share:.4f}")
        for index, (one, share) in enumerate(zip(classes, pixels / max(1, pixels.sum()), strict=True))
    ]
    table(str(out), ("value", "class", "colour", "share"), rows)
    if instances:
        say(f"{out} numbers the objects of each plane from 1: {sum(objects)} in all")
    say(f"{out}: {len(stack)} planes by bundle {bundle.digest[:12]}")


@contextmanager
def bundle_folder(model: str) -> Iterator[Path]:
    """Yield the folder of the bundle that is meant: a folder of this machine, or one from the registry."""
    from stackseg.registry.versions import bundle_at, find, uri_of

    if Path(model).is_dir():
        yield Path(model)
        return
    known = registry_to_load(load_params())
    # by name and version, so that the answers can say them
    uri = model if model.startswith("models:/") else uri_of(known.versions[find(known, model)])
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
