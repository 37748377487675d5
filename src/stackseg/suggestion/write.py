"""Write suggested planes: image and pre-filled mask of each, suggestions.csv and a picture of all."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stackseg.dataset.channels import PlaneSource
from stackseg.dataset.files.axes import VoxelSize
from stackseg.dataset.splits import PlaneRef
from stackseg.evaluation.plots import colourise, greyscale
from stackseg.intake.add import mask_file_name
from stackseg.intake.write_tiff import write_stack
from stackseg.model.bundle import Segmenter
from stackseg.model.segment import segment
from stackseg.params.inference import Tta
from stackseg.suggestion.mask_coding import MaskCoding
from stackseg.suggestion.score import PlaneScore, score_plane

TABLE_FILE, PICTURE_FILE = "suggestions.csv", "suggestions.png"
_PICTURE_SIDE = 320
"""Pixels of a plane's longer side in the picture."""


@dataclass(frozen=True)
class Suggestion:
    """A plane to annotate: why, and the score that it was ranked by, if it was ranked."""

    ref: PlaneRef
    reason: str
    score: float | None = None


@dataclass(frozen=True)
class PlaneStack:
    """A stack that planes are suggested of; its name begins the files' names, `coding` is that of its masks."""

    name: str
    planes: PlaneSource
    voxel_size_zyx_um: VoxelSize | None
    coding: MaskCoding


@dataclass(frozen=True)
class _Panel:
    title: str
    image_yxc: npt.NDArray[np.generic]
    labels_yx: npt.NDArray[np.uint8] | None
    entropy_yx: npt.NDArray[np.float32] | None


def image_file_name(name: str, z: int) -> str:
    """Return what the image of plane z is called."""
    return mask_file_name(name, z).replace("_mask.tif", ".tif")


def write_suggestions(
    folder: Path,
    suggestions: Sequence[Suggestion],
    stacks: Mapping[str, PlaneStack],
    segmenter: Segmenter | None,
    tta: Tta | None,
    progress: Callable[[int, int], None] = lambda done, all_: None,
) -> None:
    """Write the files of suggested planes into a folder that is there.

    Parameters
    ----------
    suggestions
        Planes, the first choice first.
    stacks
        Where they are, by name.
    segmenter, tta
        What fills the masks in: classes in their coding, or numbers where the model tells objects apart.
        Without a model they hold the first class.

    Raises
    ------
    DataError
        An image cannot be read, or the model cannot take it.
    """
    names = () if segmenter is None else segmenter.inference.class_names
    display = () if segmenter is None else tuple(one.display for one in segmenter.inference.classes)
    panels, rows = [], []
    for done, one in enumerate(suggestions, start=1):
        stack, z = stacks[one.ref.specimen], one.ref.z
        image_yxc = stack.planes.plane(z)
        image_file, mask_file = image_file_name(stack.name, z), mask_file_name(stack.name, z)
        _write(folder / image_file, image_yxc, stack)
        if segmenter is None:
            empty_yx = np.zeros(image_yxc.shape[:2], np.uint8)
            _write_classes(folder / mask_file, empty_yx, stack)
            score, panel = None, _Panel(_title(one), image_yxc, None, None)
        else:
            (plane,) = segment(stack.planes, segmenter, planes=[z], probabilities=True, objects=True, tta=tta)
            score, entropy_yx = score_plane(plane, len(names))
            if plane.objects_yx is not None:
                numbers_yx = plane.objects_yx.astype(np.min_scalar_type(max(256, int(plane.objects_yx.max()))))
                _write(folder / mask_file, numbers_yx, stack)
            else:
                _write_classes(folder / mask_file, plane.mask_yx, stack)
            panel = _Panel(_title(one), image_yxc, plane.mask_yx, entropy_yx)
        panels.append(_reduced(panel))
        rows.append(_row(one, image_file, mask_file, score))
        progress(done, len(suggestions))
    with (folder / TABLE_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "mask", "plane", "score", *(f"entropy {name}" for name in names), "reason"])
        writer.writerows(rows)
    _draw(folder / PICTURE_FILE, panels, display)


def _write_classes(path: Path, labels_yx: npt.NDArray[np.uint8], stack: PlaneStack) -> None:
    _write(path, stack.coding.encode(labels_yx), stack, colours=stack.coding.colours)


def _write(
    path: Path,
    plane: npt.NDArray[np.generic],
    stack: PlaneStack,
    *,
    colours: Sequence[str] = (),
) -> None:
    write_stack(
        path,
        [plane],
        num_planes=1,
        voxel_size_zyx_um=stack.voxel_size_zyx_um,
        colours=colours,
    )


def _row(one: Suggestion, image_file: str, mask_file: str, score: PlaneScore | None) -> list[str]:
    entropies = () if score is None else score.entropy_of_class
    figures = ["" if value is None else f"{value:.5f}" for value in (one.score, *entropies)]
    return [image_file, mask_file, str(one.ref.z), *figures, one.reason]


def _title(one: Suggestion) -> str:
    return f"{one.ref}" if one.score is None else f"{one.ref}   {one.score:.3f}"


def _reduced(panel: _Panel) -> _Panel:
    step = -(-max(panel.image_yxc.shape[:2]) // _PICTURE_SIDE)
    small = (slice(None, None, step),) * 2
    return _Panel(
        panel.title,
        panel.image_yxc[small].copy(),
        None if panel.labels_yx is None else panel.labels_yx[small].copy(),
        None if panel.entropy_yx is None else panel.entropy_yx[small].copy(),
    )


def _draw(path: Path, panels: Sequence[_Panel], display: Sequence[str]) -> None:
    """Draw a row for each plane: its image and, of a model, the predicted classes and the entropy over the image."""
    num_columns = 3 if display else 1
    heights = [panel.image_yxc.shape[0] / panel.image_yxc.shape[1] for panel in panels]
    width = 3.2
    figure = Figure(
        figsize=(width * num_columns + (0.9 if display else 0), sum(width * one + 0.35 for one in heights)),
        layout="constrained",
    )
    axes = figure.subplots(len(panels), num_columns, squeeze=False, height_ratios=heights)
    # one scale for all: rows are compared
    highest = max((float(panel.entropy_yx.max()) for panel in panels if panel.entropy_yx is not None), default=1.0)
    shown = None
    for row, panel in zip(axes, panels, strict=True):
        for axis in row:
            axis.imshow(greyscale(panel.image_yxc), cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
        row[0].set_title(panel.title, fontsize=9, loc="left")
        if panel.labels_yx is not None and panel.entropy_yx is not None:
            row[1].imshow(colourise(panel.labels_yx, display), alpha=0.5, interpolation="nearest")
            row[1].set_title("predicted", fontsize=9, loc="left")
            shown = row[2].imshow(
                panel.entropy_yx,
                cmap="inferno",
                vmin=0,
                vmax=highest,
                alpha=np.clip(panel.entropy_yx / max(highest, 1e-12), 0, 1) ** 0.5,
            )
            row[2].set_title("entropy", fontsize=9, loc="left")
    if shown is not None:
        figure.colorbar(shown, ax=axes[:, 2], shrink=min(1.0, 3 / len(panels)), label="entropy")
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)
