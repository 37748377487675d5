"""Verbs on masks and stacks: measure, extract, assemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stackseg.atomic import atomic_folder
from stackseg.cli.console import count_of_planes, counting, say, swatch, table
from stackseg.cli.predict import PANEL, Axes, check_out
from stackseg.cli.project import PARAMS_FILE, load_params
from stackseg.errors import DataError, ParamsError

if TYPE_CHECKING:
    from stackseg.dataset.files.stack import Stack
    from stackseg.measurement.masks import Class
    from stackseg.measurement.measure import Measures
    from stackseg.params.data import DataParams


def attach(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    app.command(rich_help_panel=PANEL)(measure)
    app.command(rich_help_panel=PANEL)(extract)
    app.command(rich_help_panel=PANEL)(assemble)


def measure(
    masks: Annotated[Path, typer.Argument(help="A mask of `stackseg predict`: .tif, .zarr or a folder of PNGs.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the tables and the plot. Default: <MASKS>_measures, here.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="YAML list of classes. Default: data.classes of the params.yaml here, if any.")
    ] = None,
    objects: Annotated[
        bool | None,
        typer.Option(
            "--objects/--indices", help="Each value is an object, or the index of a class. Default: as data.instances."
        ),
    ] = None,
    volume: Annotated[
        bool | None,
        typer.Option(
            "--3d/--2d",
            help="Objects go on from plane to plane, or each plane is measured by itself. Default: 3D if the file says "
            "how far its planes are apart; 2D with --objects, which predict numbers in each plane anew.",
        ),
    ] = None,
    pore: Annotated[
        str | None,
        typer.Option(metavar="CLASS", help="Name or index of a class: its porosity, and whether it leads through."),
    ] = None,
    axes: Axes = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the measures that are there.")] = False,
) -> None:
    """Measure a mask: fractions of the classes, sizes of objects, porosity and percolation, as CSV tables and a plot.

    fractions.csv and fractions.png say how much there is of each class in each plane, objects.csv lists every object,
    summary.csv every class, pores.csv the pores. They are in µm, µm² and µm³ where the file knows its voxel size, else
    in pixels; the columns say which. Example: stackseg measure mask.tif --pore pore
    """
    from stackseg.dataset.files.inputs import open_input
    from stackseg.measurement.masks import classes_of
    from stackseg.measurement.measure import measure_classes, measure_objects, require_volume
    from stackseg.measurement.plot import PLOT, draw_fractions
    from stackseg.measurement.tables import FRACTIONS, OBJECTS, PORES, SUMMARY, write_tables

    folder = out or Path(f"{masks.stem}_measures")
    ours = (FRACTIONS, OBJECTS, SUMMARY, PORES, PLOT)
    _require_free(folder, overwrite, lambda name: name in ours)
    data = _class_params(classes)
    numbered = objects if objects is not None else data is not None and data.instances
    known = classes_of(data) if data is not None and data.classes else None
    with open_input(masks, axes=axes) as stack:
        for note in stack.info.notes:
            say(f"{masks}: {note}")
        if volume:
            require_volume(stack)
        in_3d = _in_3d(stack, volume, numbered=numbered, pore=pore)
        with counting("measuring") as progress:
            if numbered:
                measures = measure_objects(stack, _two_classes(data, known), volume=in_3d, progress=progress)
            else:
                index = None if pore is None else _class_index(pore, known)
                measures = measure_classes(stack, known, volume=in_3d, pore=index, progress=progress)
    with atomic_folder(folder) as temporary:
        write_tables(temporary, measures)
        draw_fractions(temporary / PLOT, measures, masks.name)
    _show(masks, measures)
    written = ", ".join(name for name in ours if (folder / name).exists())
    say(f"{folder}: {written}")


def extract(
    stack: Annotated[Path, typer.Argument(help="A TIFF stack or OME-Zarr image.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the files, one for each plane.")],
    slices: Annotated[
        str | None, typer.Option(metavar="A:B", help="From plane A, counted from 0, and before plane B. Default: all.")
    ] = None,
    axes: Axes = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the planes that are there.")] = False,
) -> None:
    """Write a stack as single files: NAME_000.tif, NAME_001.tif, …, one for each plane.

    Pixels, type and channels stay as they are, and each file says the voxel size; `stackseg assemble` makes the stack
    of them again. The numbers are those of the planes in the stack. Example: stackseg extract stack.tif planes
    """
    from stackseg.dataset.files.inputs import open_input
    from stackseg.dataset.slices import planes_of
    from stackseg.intake.single_planes import extract_planes, is_extracted

    _require_free(folder, overwrite, lambda name: is_extracted(name, stack))
    with open_input(stack, axes=axes) as opened:
        for note in opened.info.notes:
            say(f"{stack}: {note}")
        planes = planes_of(slices, len(opened))
        with counting("writing") as progress:
            extract_planes(opened, folder, planes, progress)
    say(f"{folder}: planes {planes[0]} to {planes[-1]} of {stack}, a file each")


def assemble(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of TIFF or PNG files of one plane each.")],
    out: Annotated[Path, typer.Argument(metavar="STACK", help="The TIFF stack to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace STACK if it is there.")] = False,
) -> None:
    """Write single files as one stack, in the order in which people count: 2 before 10.

    Pixels, type, channels and voxel size stay as they are; they have to be the same in all files. Example: stackseg
    assemble planes stack.tif
    """
    from stackseg.intake.single_planes import assemble_planes

    if not folder.is_dir():
        raise DataError("no such folder", where=str(folder), remedy="check the path")
    check_out(folder, out, overwrite)
    with counting("writing") as progress:
        info, num_planes = assemble_planes(folder, out, progress)
    height, width = info.shape_yx
    known = ", voxel size unknown" if info.voxel_size_zyx_um is None else ""
    say(f"{out}: {count_of_planes(num_planes)} of {height}×{width} pixels, {info.dtype}{known}")


def _require_free(folder: Path, overwrite: bool, is_ours: Callable[[str], bool]) -> None:
    """Raise DataError if a folder may not be replaced: it holds other files, or nobody asked for it."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError("a file", expected="a folder", where=str(folder), remedy="name another")
    names = sorted(one.name for one in folder.iterdir())
    if others := [name for name in names if not is_ours(name)]:
        raise DataError(
            f"the folder is there already, and holds other files ({others[0]})",
            where=str(folder),
            remedy="name another folder",
        )
    if names and not overwrite:
        raise DataError("the folder is there already", where=str(folder), remedy="name another, or add --overwrite")


def _class_params(file: Path | None) -> DataParams | None:
    from stackseg.params.data import read_classes

    if file is not None:
        return read_classes(file)
    return load_params().data if PARAMS_FILE.exists() else None


def _two_classes(data: DataParams | None, known: Sequence[Class] | None) -> Sequence[Class]:
    """Return what background and objects are called: as in the project, if its masks number objects."""
    from stackseg.measurement.masks import Class

    if data is not None and data.instances and known:
        return known
    return [Class("background", "#000000"), Class("object", "#1f77b4")]


def _class_index(named: str, known: Sequence[Class] | None) -> int:
    """Return the index of a class that is called by name or index."""
    names = [one.name for one in known or ()]
    if named in names:
        return names.index(named)
    if named.isdecimal() and (known is None or int(named) < len(names)):
        return int(named)
    raise ParamsError(
        f"no class {named!r}", expected=f"one of {', '.join(names)}" if names else "an index", where="--pore"
    )


def _in_3d(stack: Stack, wanted: bool | None, *, numbered: bool, pore: str | None) -> bool:
    """Return whether objects go on from plane to plane, and say so."""
    from stackseg.measurement.measure import bytes_for_volume

    info = stack.info
    spacing = info.voxel_size_zyx_um[0] if info.voxel_size_zyx_um else None
    in_3d = wanted if wanted is not None else spacing is not None and len(stack) > 1 and not numbered
    if pore is not None and (numbered or not in_3d):
        raise ParamsError(
            "pores of objects" if numbered else "pores of planes that are measured each by itself",
            expected="class indices" if numbered else "planes that follow one another",
            where="--pore",
            remedy="leave out --objects" if numbered else "add --3d if the planes are neighbours",
        )
    apart = "the file does not say how far its planes are apart"
    if spacing is not None:
        apart = f"planes are {spacing:g} µm apart"
    memory = "" if numbered else f"; takes about {bytes_for_volume(stack) / 1e9:.2g} GB of memory"
    if in_3d:
        say(f"in 3D: objects go on from plane to plane ({apart}){memory}")
    else:
        say(f"in 2D: each plane by itself ({apart})")
    return in_3d


def _show(masks: Path, measures: Measures) -> None:
    from stackseg.measurement.tables import summary_rows

    rows = []
    for one, row in zip(measures.classes, summary_rows(measures), strict=True):
        num_objects, *sizes = row[-4:]
        shown = ["" if size is None else f"{size:.4g}" for size in sizes]
        rows.append((one.name, swatch(one.colour), f"{row[3]:.2%}", "" if num_objects is None else num_objects, *shown))
    unit = {"um3": "µm³", "um2": "µm²", "voxels": "voxels", "px": "pixels"}[measures.scale.size]
    columns = ("class", "colour", "fraction", "objects", "median size", "mean", "largest")
    table(f"{masks}: sizes in {unit}", columns, rows)
    if (pores := measures.pores) is not None:
        name = measures.classes[pores.class_index].name
        say(
            f"porosity ({name}): {pores.porosity:.2%} in {pores.num_pores} pores; "
            f"the largest is {pores.largest_share:.2%} of the pore space"
        )
        for letter, share in zip("zyx", pores.percolating_share_zyx, strict=True):
            through = f"percolates, with {share:.2%} of the pore space" if share else "does not percolate"
            say(f"along {letter}: {through}")
