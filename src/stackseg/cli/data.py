"""Verbs on data: sample, add, check."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stackseg.atomic import atomic_folder
from stackseg.cli.console import counting, next_step, print_json, say, swatch, table, warn
from stackseg.cli.project import DATA, PARAMS_FILE, load_params, run_dvc
from stackseg.errors import DataError, ParamsError

if TYPE_CHECKING:
    from stackseg.dataset.labels.table import LabelTable
    from stackseg.dataset.records import Catalog
    from stackseg.dataset.splits import Part
    from stackseg.intake.add import Inspection
    from stackseg.params import Params

PANEL = "Your data"


def attach(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    app.command(rich_help_panel=PANEL)(sample)
    app.command(rich_help_panel=PANEL)(add)
    app.command(rich_help_panel=PANEL)(check)


def sample(
    planes: Annotated[int, typer.Option(min=4, help="Planes of the stack.")] = 96,
    height: Annotated[int, typer.Option(min=16, help="Height in pixels.")] = 128,
    width: Annotated[int, typer.Option(min=16, help="Width in pixels.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Another rock for another seed.")] = 7,
) -> None:
    """Write the synthetic sandstone stack into data/.

    Four classes (pore, clay, quartz, heavy mineral) in a 16-bit stack. At its default size it is what data.dvc
    tracks, so `dvc repro` can follow at once.
    """
    from stackseg.dataset.fingerprints import data_digest
    from stackseg.intake.sample import write_sample

    _require_real_folder()
    _refuse_to_overwrite()
    write_sample(DATA, (planes, height, width), seed=seed)
    say(f"wrote {DATA}/images.tif and {DATA}/masks.tif: {planes} planes of {height}×{width} pixels, uint16")
    if data_digest(DATA) != _tracked_digest():
        _track()
        say("data.dvc now tracks this sample")
    next_step("dvc repro")


def add(
    images: Annotated[Path, typer.Argument(help="TIFF stack (or PNG), or a folder of single files.")],
    masks: Annotated[Path, typer.Argument(help="Masks: as many pages, the pages named by --planes, or a folder.")],
    name: Annotated[str | None, typer.Option(help="Name of the specimen; default: the file's.")] = None,
    planes: Annotated[
        str | None, typer.Option(help="Which planes the masks belong to, counted from 0: 0,50,100 or 10-19.")
    ] = None,
    axes: Annotated[
        str | None, typer.Option(help="Axes of IMAGES, e.g. ZYX or ZCYX, if its metadata leave them open.")
    ] = None,
    mask_axes: Annotated[str | None, typer.Option(help="Axes of MASKS, likewise.")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="YAML list of classes (name, raw, display) to use instead of a proposed table.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Start over: put these in the place of all data, its table and its split.")
    ] = False,
) -> None:
    """Add your images and masks.

    Looks at both, checks them against each other, shows what is in them, copies them into data/<specimen>/, writes the
    class table and settings that suit the data into params.yaml, says why, and runs `dvc add data`. They replace the
    untouched sample. Masks of further planes (--planes) of a stack that is there join those that it has.
    """
    from stackseg.dataset.agreement import fitting_colour, require_agreement
    from stackseg.dataset.records import label_table
    from stackseg.dataset.specimens import find_specimens, left_out
    from stackseg.intake.add import (
        add_planes,
        check_values,
        copy_specimen,
        find_same_stack,
        inspect,
        open_pair,
        require_free,
        require_name,
    )
    from stackseg.intake.fingerprint import measure
    from stackseg.intake.params_update import adapt_params
    from stackseg.intake.proposal import propose

    if name is not None:
        require_name(name)
    _require_real_folder()
    params = load_params()
    specimen = open_pair(images, masks, planes=_plane_numbers(planes), axes=axes, mask_axes=mask_axes, name=name)
    chosen_name = name or specimen.name
    require_name(chosen_name)
    fresh = replace or data_makes_way()
    if not fresh:
        require_folders()
    there = None if has_no_table(params) else label_table(params)
    present = None if fresh else find_same_stack(DATA, chosen_name, specimen, there)
    colour = fitting_colour(specimen, params.data.colour) if fresh else params.data.colour
    require_agreement([*([] if fresh else find_specimens(DATA)), specimen], colour)
    if not fresh and present is None:
        require_free(DATA, chosen_name)
    with counting("reading") as progress:
        inspection = inspect(specimen, progress)
    # a table that somebody made, such as a recipe's, stays, and so do the settings beside it
    anew = replace or (fresh and has_no_table(params))
    found = _choose_table(inspection, params, classes, anew=anew)
    _show(inspection, found)
    for folder in (images, masks) if images.is_dir() else ():
        if others := left_out(folder):
            more = ", …" if len(others) > 5 else ""
            say(f"note: left out of {folder}, for they are no images: {', '.join(map(repr, others[:5]))}{more}")
    check_values(specimen, found)
    with counting("measuring") as progress:
        proposals = propose(measure(specimen, found, colour, progress)) if fresh else []
    if fresh:
        with atomic_folder(DATA) as temporary:
            copy_specimen(specimen, temporary, chosen_name)
    elif present is not None:
        before = len(present.labelled if there is None else present.annotated(there))
        add_planes(present, specimen, DATA)
    else:
        copy_specimen(specimen, DATA, chosen_name)
    if proposals:
        rows = [(one.key, str(one.value), one.reason) for one in proposals]
        table("settings that suit these data", ("setting", "value", "because"), rows)
    changed = adapt_params(PARAMS_FILE, found, proposals, fresh=fresh, anew=anew, colour=colour)
    _track()
    if present is None:
        say(f"added as {DATA}/{chosen_name}; data.dvc tracks it")
    else:
        say(f"added to {DATA}/{chosen_name}: {before + len(specimen.labelled)} annotated planes, {before} before")
    for line in changed:
        say(f"params.yaml: {line}")
    if any(one.startswith("class_") for one in found.names):
        say("the classes have no names yet: give them some in params.yaml, data.classes")
    next_step("stackseg check, then dvc repro (and git add data.dvc params.yaml)")


def check(
    as_json: Annotated[bool, typer.Option("--json", help="Print the catalogue as JSON.")] = False,
) -> None:
    """Validate everything in data/ and say what training would use."""
    from stackseg.catalog.build import build_catalog

    params = load_params()
    with counting("reading") as progress:
        catalog = build_catalog(DATA, params, progress=progress)
    if as_json:
        print_json(catalog.model_dump(mode="json"))
        return
    show_catalog(catalog)
    tracked = _tracked_digest()
    if tracked is not None and tracked != catalog.data_md5:
        warn(f"data/ is {catalog.data_md5}, data.dvc tracks {tracked}: run `dvc add data`")
    next_step("dvc repro")


def show_catalog(catalog: Catalog) -> None:
    """Print what a catalogue says: specimens, split, classes, leakage, warnings."""
    table(
        "specimens",
        ("specimen", "planes", "annotated", "size", "channels", "type", "voxel size z, y, x (µm)"),
        [
            (one.name, one.num_planes, len(one.planes), _sizes({plane.shape_yx for plane in one.planes}),
             one.num_channels, one.dtype, _voxel(one.voxel_size_zyx_um))
            for one in catalog.specimens
        ],
    )  # fmt: skip
    parts = list(catalog.class_fractions)
    partly = any(plane.ignored_pixels for _, plane in catalog.planes(*parts))
    table(
        f"split: {catalog.split.method}",
        ("part", "planes", *["labelled"] * partly, *(one.name for one in catalog.classes)),
        [
            (
                part,
                len(catalog.planes(part)),
                *[_labelled(catalog, part)] * partly,
                *(f"{share:.2%}" for share in catalog.class_fractions[part]),
            )
            for part in parts
        ],
    )
    leakage = catalog.leakage
    if leakage.figure is not None:
        say(
            f"leakage {leakage.figure:.2f}: held-out planes resemble their nearest training plane by "
            f"{leakage.nearest:.2f}, far-apart planes each other by {leakage.far:.2f} (0 is clean, 1 is trained on)"
        )
    for line in catalog.warnings:
        warn(line)


def _labelled(catalog: Catalog, part: Part) -> str:
    """Return the share of labelled pixels in the annotated planes of a part."""
    num_ignored = sum(plane.ignored_pixels for _, plane in catalog.planes(part))
    num_labelled = sum(catalog.class_pixels(part))
    return f"{num_labelled / (num_labelled + num_ignored):.2%}"


def _choose_table(inspection: Inspection, params: Params, file: Path | None, *, anew: bool) -> LabelTable:
    from stackseg.dataset.records import label_table
    from stackseg.intake.label_proposal import are_instances, instance_table, propose_table
    from stackseg.params.data import read_classes

    ignores_unlabelled = params.data.unlabelled == "ignore"
    if file is not None:
        named = read_classes(file)
        given = label_table(params.model_copy(update={"data": named}))
        # a table that says nothing of it leaves it as it is
        says_nothing = "unlabelled" not in named.model_fields_set and not given.instances
        return replace(given, ignores_unlabelled=ignores_unlabelled) if says_nothing else given
    specimen = inspection.specimen
    first = specimen.mask_file(specimen.labelled[0]).info.path
    where = str(first if specimen.is_stack else first.parent)
    objects = not ignores_unlabelled and are_instances(inspection.raw_of_planes, inspection.num_regions)
    if anew or not params.data.classes:
        if objects:
            say("the masks number objects, for they hold many values and each of a plane is one connected region")
            return instance_table()
        lossy = any(specimen.mask_file(z).info.encoding.may_be_lossy for z in specimen.labelled)
        undrawn: set[int | str] = {0, "#000000", "#00000000"} if ignores_unlabelled else set()
        counts = {code: count for code, count in inspection.raw.items() if code not in undrawn}
        planes = [codes - undrawn for codes in inspection.raw_of_planes]
        proposed = propose_table(counts, planes=planes, may_be_lossy=lossy, where=where)
        return replace(proposed, ignores_unlabelled=ignores_unlabelled)
    present = label_table(params)
    known = {code for raw in present.raw for code in raw} | set(present.ignore)
    unknown = [code for code in inspection.raw if code not in known]
    if unknown and not (present.instances or ignores_unlabelled):
        if objects:
            raise ParamsError(
                "the masks number objects, and data.classes is for classes",
                expected=f"the table that is there: {', '.join(present.names)}",
                where=inspection.first_seen[unknown[0]],
                remedy="set data.instances: true in params.yaml if the others number objects too, or give all objects "
                "of a class one value",
            )
        raise ParamsError(
            f"the masks hold {', '.join(map(str, unknown[:5]))}, which data.classes does not name",
            expected=f"the table that is there: {', '.join(present.names)}",
            where=inspection.first_seen[unknown[0]],
            remedy="give a table for all specimens by --classes FILE (raw takes a list), or start over with --replace",
        )
    return present


def _show(inspection: Inspection, found: LabelTable) -> None:
    specimen = inspection.specimen
    info = specimen.image_file(specimen.labelled[0]).info
    low, high = inspection.intensity_range
    sizes = {specimen.shape_yx(z) for z in specimen.labelled}
    table(
        "images",
        ("planes", "annotated", "size", "channels", "type", "intensity", "voxel size z, y, x (µm)", "axes"),
        [(len(specimen), len(specimen.labelled), _sizes(sizes), info.num_channels, info.dtype,
          f"{low:g} to {high:g}", _voxel(specimen.voxel_size_zyx_um()), info.axes)],
    )  # fmt: skip
    (_show_objects if found.instances else _show_classes)(inspection, found)
    for note in specimen.notes():
        say(f"note: {note}")
    if inspection.num_constant:
        warn(f"{inspection.num_constant} constant planes")


def _show_classes(inspection: Inspection, found: LabelTable) -> None:
    from stackseg.intake.label_proposal import instance_question

    total = sum(inspection.raw.values())
    classes = {code: place for place, raw in enumerate(found.raw) for code in raw}
    table(
        "masks",
        ("raw value", "pixels", "fraction", "class", "drawn"),
        [
            (str(code), count, f"{count / total:.3%}", *_class_cells(code, classes, found))
            for code, count in sorted(inspection.raw.items(), key=lambda one: str(one[0]))
        ],
    )
    if question := instance_question(inspection.raw_of_planes, inspection.num_regions):
        warn(question)


def _show_objects(inspection: Inspection, found: LabelTable) -> None:
    no_object = {0, *found.ignore}
    num_objects = sum(len(codes - no_object) for codes in inspection.raw_of_planes)
    total = sum(inspection.raw.values())
    pixels = sum(count for code, count in inspection.raw.items() if code not in no_object)
    table(
        "masks",
        ("objects", "planes", "class", "fraction", "drawn"),
        [
            (
                num_objects,
                len(inspection.raw_of_planes),
                found.names[1],
                f"{pixels / total:.3%}",
                swatch(found.display[1]),
            )
        ],
    )
    if inspection.num_regions > 2 * num_objects:
        warn(
            f"the masks have {inspection.num_regions} connected regions and {num_objects} values other than 0: all "
            "regions of one value of a plane count as one object (data.instances)"
        )


def _class_cells(code: int | str, classes: dict[int | str, int], found: LabelTable) -> tuple[str, str]:
    place = classes.get(code)
    if code in found.ignore or (place is None and found.ignores_unlabelled):
        return "ignored", ""
    return ("unknown", "") if place is None else (f"{place} {found.names[place]}", swatch(found.display[place]))


def _track() -> None:
    run_dvc("add", str(DATA), remedy=f"mend this, then type `dvc add {DATA}`: your files are in {DATA}/ already")


def has_no_table(params: Params) -> bool:
    """Tell whether params.yaml names no classes, or only those of the sample."""
    from stackseg.intake.sample import SAMPLE_CLASSES

    names = [(one.name, *one.codes) for one in params.data.classes]
    return not names or names == [(name, raw) for name, raw, _ in SAMPLE_CLASSES]


def data_makes_way() -> bool:
    """Tell whether data/ is empty, or holds the untouched sample, for which files that are added take its place."""
    return not DATA.exists() or _holds_sample() or not any(DATA.iterdir())


def require_folders() -> None:
    """Refuse a data/ that is one specimen, to which no other can be added."""
    from stackseg.dataset.specimens import holds_images

    if holds_images(DATA):
        raise DataError(
            "data/ holds one stack without a folder of its own",
            where=str(DATA),
            remedy="move its files into data/<specimen>/ first, or start over with --replace",
        )


def _holds_sample() -> bool:
    from stackseg.intake.sample import is_untouched_sample

    return is_untouched_sample(DATA)


def _require_real_folder() -> None:
    """Refuse a data/ that is a link before anything is copied through it: DVC does not track what lies behind one."""
    if DATA.is_symlink():
        raise DataError(
            f"it is a link to {DATA.readlink()}, and `dvc add` refuses links",
            expected="a folder",
            where=str(DATA),
            remedy="remove the link; large files can be on another disk if DVC's cache is there (`dvc cache dir PATH`) "
            "and data/ holds links into it (`dvc config cache.type symlink`)",
        )
    if DATA.exists() and not DATA.is_dir():
        raise DataError("it is a file", expected="a folder", where=str(DATA), remedy="move it elsewhere")


def _refuse_to_overwrite() -> None:
    if DATA.exists() and any(DATA.iterdir()) and not _holds_sample():
        raise DataError(
            "it holds data that is not the sample",
            where=str(DATA),
            remedy="remove it first (DVC's cache keeps what was added), or work in another clone",
        )


def _tracked_digest() -> str | None:
    from stackseg.params.file import read_tree

    path = Path("data.dvc")
    if not path.exists():
        return None
    outs = read_tree(path).get("outs") or [{}]
    return str(outs[0].get("md5"))


def _plane_numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise ParamsError(f"{part.strip()!r}", expected="plane numbers such as 0,50,100 or 10-19", where="--planes")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers


def _sizes(shapes: set[tuple[int, int]]) -> str:
    ordered = sorted(shapes)
    first = "×".join(map(str, ordered[0]))
    return first if len(ordered) == 1 else f"{first} to {'×'.join(map(str, ordered[-1]))}"


def _voxel(size: tuple[float | None, float | None, float | None] | None) -> str:
    return "unknown" if size is None else ", ".join("?" if one is None else f"{one:g}" for one in size)
