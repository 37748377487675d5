"""Suggest planes to annotate next."""

from __future__ import annotations

import filecmp
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stackseg.atomic import atomic_folder
from stackseg.cli.console import count_of_planes, counting, next_step, say, table, warn
from stackseg.cli.data import data_makes_way, has_no_table, require_folders
from stackseg.cli.predict import PANEL as MODEL_PANEL
from stackseg.cli.predict import bundle_folder
from stackseg.cli.project import CATALOG, DATA, load_params, registry_to_load
from stackseg.cli.stages import Device
from stackseg.errors import DataError, ModelError

if TYPE_CHECKING:
    from stackseg.dataset.labels.table import LabelTable
    from stackseg.dataset.specimens import Specimen
    from stackseg.dataset.splits import Part, PlaneRef
    from stackseg.model.bundle import Bundle
    from stackseg.params import Params
    from stackseg.params.inference import Tta
    from stackseg.suggestion.candidates import Candidates, KnownPlanes
    from stackseg.suggestion.mask_coding import MaskCoding
    from stackseg.suggestion.write import PlaneStack, Suggestion

Method = Literal["entropy", "random", "even", "foreground"]


@dataclass(frozen=True)
class _Input:
    """A stack to suggest planes of, and how `add` is told of it."""

    stack: PlaneStack
    path: Path
    axes: str | None


def attach(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(rich_help_panel=MODEL_PANEL)(suggest)


def suggest(
    out: Annotated[Path, typer.Option(help="Folder to write into; it must be new or empty.")],
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[IN]...", help="Stacks. Default: the specimens of data/ with planes without a mask."),
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="How many planes.")] = 5,
    method: Annotated[
        Method | None,
        typer.Option(
            help="entropy: where the model is unsure; foreground: chance by the share of classes other than the most "
            "frequent; random; even. Default: entropy; even where there is no champion."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="champion, an alias, a version, models:/… or the folder of a bundle. Default: the champion."),
    ] = None,
    min_distance: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Least distance in planes between two picks, and from annotated planes. Default: half of even "
            "spacing, and more than split.gap.",
        ),
    ] = None,
    tta: Annotated[
        Literal["none", "flips", "d4"], typer.Option(help="What the entropy is averaged over: flips, or turns, too.")
    ] = "flips",
    axes: Annotated[str | None, typer.Option(help="Axes of IN, e.g. ZYX, if its metadata leave them open.")] = None,
    device: Device = "auto",
) -> None:
    """Suggest which planes to annotate next, and write each with a mask to correct.

    Neither planes with a mask are suggested, nor those of the test part or within split.gap of one. What it prints at
    the end takes the corrected masks back.
    """
    from stackseg.suggestion.candidates import default_distance, find_candidates
    from stackseg.suggestion.choose import choose_planes, far_candidates
    from stackseg.suggestion.write import write_suggestions

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError("it is there already, and not empty", where=str(out), remedy="name another folder by --out")
    params = load_params()
    specimens = _specimens()
    stacks = [_input(path, axes, specimens, params) for path in inputs] if inputs else _own_stacks(specimens, params)
    by_name = {one.stack.name: one for one in stacks}
    if len(by_name) < len(stacks):
        twice = next(one for one in stacks if by_name[one.stack.name] is not one)
        raise DataError(
            f"it and {by_name[twice.stack.name].path} would both be called {twice.stack.name}",
            where=str(twice.path),
            remedy="suggest from one at a time, or rename a file",
        )
    with _segmenter(model, method, params, device) as bundle:
        if method is None:
            method = "even" if bundle is None else "entropy"
            if bundle is None:
                say("no champion and no --model: planes are spaced evenly (--method even), masks hold the first class")
        known = _known(specimens, params, bundle)
        found: dict[str, Candidates] = {}
        for name, one in by_name.items():
            with counting(f"reading {name}") as progress:
                found[name] = find_candidates(one.stack.planes, known, params.split, progress)
        distances = {name: min_distance or default_distance(one, num, params.split) for name, one in found.items()}
        planes = far_candidates(found, distances)
        if not planes:
            raise _nothing_left(found, distances)
        scores = _scores(method, bundle, by_name, planes, tta)
        chosen = choose_planes(
            method, planes, num, distances, scores=scores, num_annotated=len(known.annotated), seed=params.seed
        )
        if len(chosen) < num:
            warn(
                f"{count_of_planes(len(chosen))} instead of {num}: no other is far enough from these and from "
                f"annotated ones (--min-distance {', '.join(map(str, sorted({*distances.values()})))})"
            )
        suggestions = _explained(method, chosen, planes, scores, found)
        with atomic_folder(out) as folder, counting("writing") as progress:
            written = {name: one.stack for name, one in by_name.items()}
            write_suggestions(folder, suggestions, written, bundle, tta, progress)
    _tell(out, suggestions, by_name, params, keeps_test=bool(known.test))


def _specimens() -> list[Specimen]:
    """Return what is in data/, which may be empty yet; the untouched sample makes way for other files, and is not."""
    from stackseg.dataset.specimens import find_specimens

    if data_makes_way():
        return []
    require_folders()  # what is suggested could not be added
    return find_specimens(DATA)


def _own_stacks(specimens: Sequence[Specimen], params: Params) -> list[_Input]:
    table = _table(params)
    sparse = [one for one in specimens if one.is_stack and len(_annotated(one, table)) < len(one)]
    if not sparse:
        raise DataError(
            "no stack with planes without a mask",
            where=str(DATA),
            remedy="name a stack to suggest planes of: `stackseg suggest IN --out DIR`",
        )
    return [_of_specimen(one, one.image_file(0).info.path, specimens, params) for one in sparse]


def _input(path: Path, axes: str | None, specimens: Sequence[Specimen], params: Params) -> _Input:
    """Open a stack; one that was added already goes by the name that it has in data/."""
    from stackseg.dataset.files.stack import open_stack
    from stackseg.intake.add import name_of, require_free, require_name
    from stackseg.suggestion.write import PlaneStack

    stack = open_stack(path, axes=axes)
    for one in specimens:
        if one.is_stack and filecmp.cmp(one.image_file(0).info.path, path, shallow=False):
            return _of_specimen(one, path, specimens, params)
    name = name_of(path)
    require_name(name)
    try:
        require_free(DATA, name)
    except DataError as error:
        if specimens:  # else what is there makes way
            raise DataError(
                f"{error.where} is of that name and another stack",
                where=str(path),
                remedy="rename the file: the specimen will be called as it is",
            ) from None
    return _Input(PlaneStack(name, stack, stack.info.voxel_size_zyx_um, _coding(None, specimens, params)), path, axes)


def _of_specimen(one: Specimen, path: Path, specimens: Sequence[Specimen], params: Params) -> _Input:
    from stackseg.suggestion.write import PlaneStack

    coding = _coding(one, specimens, params)
    return _Input(PlaneStack(one.name, one, one.voxel_size_zyx_um(), coding), path, one.note.axes)


def _coding(like: Specimen | None, specimens: Sequence[Specimen], params: Params) -> MaskCoding:
    from stackseg.suggestion.mask_coding import choose_coding

    return choose_coding(_table(params), like, specimens)


def _table(params: Params) -> LabelTable | None:
    from stackseg.dataset.records import label_table

    return None if has_no_table(params) else label_table(params)


def _annotated(specimen: Specimen, table: LabelTable | None) -> tuple[int, ...]:
    return specimen.labelled if table is None else specimen.annotated(table)


@contextmanager
def _segmenter(model: str | None, method: Method | None, params: Params, device: str) -> Iterator[Bundle | None]:
    """Yield the model that ranks planes and fills masks in, or None where none is named and there is no champion."""
    from stackseg.registry.versions import CHAMPION

    if model is None and CHAMPION not in registry_to_load(params).aliases:
        if method in ("entropy", "foreground"):
            raise ModelError(
                "there is no champion",
                expected="a model to rank planes by",
                where=f"--method {method}",
                remedy="name one by --model, `stackseg promote` a version, or take --method even",
            )
        yield None
        return
    from stackseg.model.bundle import load_bundle
    from stackseg.model.devices import pick_device

    with bundle_folder(model or CHAMPION) as folder:
        bundle = load_bundle(folder, pick_device(device))
        names = tuple(one.name for one in params.data.classes)
        if (bundle.inference.class_names, bundle.inference.instances) != (names, params.data.instances):
            raise ModelError(
                f"a model of the classes {', '.join(bundle.inference.class_names)}",
                expected=f"{', '.join(names) or 'none yet'}, as data.classes of params.yaml has",
                where=f"--model {model or CHAMPION}",
                remedy="name a model of these classes, or write its classes into params.yaml",
            )
        yield bundle


def _known(specimens: Sequence[Specimen], params: Params, bundle: Bundle | None) -> KnownPlanes:
    from stackseg.dataset.records import read_catalog
    from stackseg.suggestion.candidates import find_known

    digests: tuple[str, ...] = ()
    if bundle is not None:
        seen = bundle.spec.seen
        digests = (*seen.training, *seen.validation, *seen.gap)
    catalog = read_catalog(CATALOG) if CATALOG.exists() else None
    return find_known(specimens, _table(params), _parts(specimens, params), catalog, digests)


def _parts(specimens: Sequence[Specimen], params: Params) -> Mapping[PlaneRef, Part]:
    """Return the present split; none where there are too few annotated planes for one, so that nothing is a test."""
    from stackseg.catalog.build import plane_groups
    from stackseg.dataset.splits import PlaneRef, assign_parts

    table = _table(params)
    refs = [PlaneRef(one.name, z) for one in specimens for z in _annotated(one, table)]
    groups = plane_groups(DATA, specimens, params)
    try:
        return assign_parts(refs, params.split, params.seed, groups)
    except DataError:
        return {}


def _scores(
    method: Method, bundle: Bundle | None, inputs: Mapping[str, _Input], planes: Sequence[PlaneRef], tta: Tta
) -> list[float]:
    """Return what planes are ranked by, in their order; nothing where the method ranks none."""
    from stackseg.suggestion.score import foreground, score_planes

    if bundle is None or method in ("random", "even"):
        return []
    scores = []
    with counting("segmenting") as progress:
        for name in dict.fromkeys(ref.specimen for ref in planes):
            wanted = [ref.z for ref in planes if ref.specimen == name]
            for _, score in score_planes(inputs[name].stack.planes, bundle, wanted, tta):
                scores.append(score)
                progress(len(scores), len(planes))
    return foreground(scores) if method == "foreground" else [one.uncertainty for one in scores]


def _explained(
    method: Method,
    chosen: Sequence[PlaneRef],
    planes: Sequence[PlaneRef],
    scores: Sequence[float],
    found: Mapping[str, Candidates],
) -> list[Suggestion]:
    from stackseg.suggestion.write import Suggestion

    score_of = dict(zip(planes, scores, strict=True)) if scores else {}
    suggestions = []
    for ref in chosen:
        score = score_of.get(ref)
        if score is None:
            reason = "evenly spaced" if method == "even" else "drawn at random"
        else:
            rank = 1 + sum(other > score for other in scores)
            reason = f"{'entropy' if method == 'entropy' else 'share of foreground'} no. {rank} of {len(scores)}"
        if annotated := found[ref.specimen].annotated:
            reason += f", {count_of_planes(min(abs(ref.z - z) for z in annotated))} from an annotated one"
        suggestions.append(Suggestion(ref, reason, score))
    return suggestions


def _nothing_left(found: Mapping[str, Candidates], distances: Mapping[str, int]) -> DataError:
    allowed = sum(len(one.allowed) for one in found.values())
    annotated, kept = (sum(len(getattr(one, key)) for one in found.values()) for key in ("annotated", "kept_from"))
    if allowed:
        nearest = max(min(abs(z - a) for a in one.annotated) for one in found.values() for z in one.allowed)
        return DataError(
            f"all {allowed} planes without a mask are nearer than {max(distances.values())} to an annotated one",
            where=", ".join(found),
            remedy=f"--min-distance {nearest} leaves some",
        )
    return DataError(
        f"{annotated} planes have a mask, and {kept} are too near to a test plane",
        expected="other planes",
        where=", ".join(found),
        remedy="name another stack",
    )


def _tell(
    out: Path, suggestions: Sequence[Suggestion], inputs: Mapping[str, _Input], params: Params, *, keeps_test: bool
) -> None:
    from stackseg.suggestion.write import PICTURE_FILE, image_file_name

    table(
        str(out),
        ("file", "plane", "score", "reason"),
        [
            (image_file_name(one.ref.specimen, one.ref.z), one.ref.z, "" if one.score is None else f"{one.score:.4f}",
             one.reason)
            for one in suggestions
        ],
        whole=("file",),
    )  # fmt: skip
    say(f"{out}/{PICTURE_FILE} shows them; correct each …_mask.tif, under the name that it has")
    if keeps_test and params.split.method in ("blocks", "random", "groups"):
        say(
            f"note: split.method {params.split.method} draws the test part anew when planes are added; "
            "split.method: explicit keeps it as it is"
        )
    for name in dict.fromkeys(one.ref.specimen for one in suggestions):
        planes = ",".join(str(z) for z in sorted(one.ref.z for one in suggestions if one.ref.specimen == name))
        words = ["stackseg", "add", str(inputs[name].path), str(out), "--planes", planes, "--name", name]
        given = inputs[name].axes
        next_step(shlex.join([*words, *(["--axes", given] if given else [])]))
