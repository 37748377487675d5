"""Pictures that people judge a segmentation by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from stackseg.dataset.labels.table import IGNORE_INDEX

RIGHT, WRONG, IGNORED = "#e8ecef", "#d1003f", "#7a8794"
# beyond this side a picture is reduced: it is looked at, not measured
MAX_SIDE = 1024
# of each of the four parts of a panel
PANEL_SIDE = 384


def colourise(labels_yx: npt.NDArray[np.uint8], display: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Return class indices (Y, X) as RGB (Y, X, 3) in the classes' display colours; ignored pixels are grey."""
    palette = np.tile(np.array(to_rgb(IGNORED)), (IGNORE_INDEX + 1, 1))
    palette[: len(display)] = [to_rgb(one) for one in display]
    return np.asarray((palette * 255).round().astype(np.uint8)[labels_yx])


def greyscale(image_yxc: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Return a plane (Y, X, C) stretched from its 1st to its 99th percentile to 0..1: (Y, X), or (Y, X, 3) for RGB."""
    shown = image_yxc.astype(np.float64)
    shown = shown if shown.shape[2] == 3 else shown[:, :, 0]
    low, high = np.percentile(shown, [1, 99])
    stretched: npt.NDArray[np.float64] = np.clip((shown - low) / max(high - low, 1e-12), 0, 1)
    return stretched


def overlay_panel(
    image_yxc: npt.NDArray[np.generic],
    truth_yx: npt.NDArray[np.uint8],
    prediction_yx: npt.NDArray[np.uint8],
    display: Sequence[str],
) -> npt.NDArray[np.uint8]:
    """Return input and truth, and below them prediction and error, as one RGB picture (Y, X, 3) without a word.

    Planes are reduced to at most PANEL_SIDE pixels a side; arguments are those of `draw_overlay`.
    """
    step = -(-max(truth_yx.shape) // PANEL_SIDE)
    truth_yx, prediction_yx = truth_yx[::step, ::step], prediction_yx[::step, ::step]
    shown = (greyscale(image_yxc[::step, ::step]) * 255).astype(np.uint8)
    input_yx3 = shown if shown.ndim == 3 else shown[:, :, None].repeat(3, 2)
    error_yx = np.where(truth_yx == IGNORE_INDEX, 2, truth_yx != prediction_yx).astype(np.uint8)
    parts = [
        input_yx3,
        colourise(truth_yx, display),
        colourise(prediction_yx, display),
        colourise(error_yx, (RIGHT, WRONG, IGNORED)),
    ]
    framed = [np.pad(one, ((0, 4), (0, 4), (0, 0)), constant_values=255) for one in parts]
    return np.concatenate([np.concatenate(framed[:2], 1), np.concatenate(framed[2:], 1)])[:-4, :-4]


def draw_overlay(
    path: Path,
    image_yxc: npt.NDArray[np.generic],
    truth_yx: npt.NDArray[np.uint8],
    prediction_yx: npt.NDArray[np.uint8],
    *,
    classes: Sequence[tuple[str, str]],
    title: str,
) -> None:
    """Draw input, truth, prediction and error side by side.

    Parameters
    ----------
    image_yxc, truth_yx, prediction_yx
        Plane (Y, X, C) in raw intensity and class indices (Y, X).
    classes
        Name and display colour of every class.
    """
    step = -(-max(truth_yx.shape) // MAX_SIDE)
    image_yxc, truth_yx = image_yxc[::step, ::step], truth_yx[::step, ::step]
    prediction_yx = prediction_yx[::step, ::step]
    display = [colour for _, colour in classes]
    error_yx = np.where(truth_yx == IGNORE_INDEX, 2, truth_yx != prediction_yx)
    height, width = truth_yx.shape
    figure = Figure(figsize=(14, 14 / 4 * height / width + 1.1), layout="constrained")
    axes = figure.subplots(1, 4)
    panels: tuple[tuple[str, npt.NDArray[np.generic]], ...] = (
        ("input", greyscale(image_yxc)),
        ("truth", colourise(truth_yx, display)),
        ("prediction", colourise(prediction_yx, display)),
    )
    for axis, (name, shown) in zip(axes, panels, strict=False):
        axis.imshow(shown, cmap="gray", vmin=0, vmax=1 if shown.dtype == np.float64 else None, interpolation="nearest")
        axis.set_title(name, fontsize=10)
    axes[3].imshow(error_yx, cmap=ListedColormap([RIGHT, WRONG, IGNORED]), vmin=0, vmax=2, interpolation="nearest")
    axes[3].set_title("error", fontsize=10)
    for axis in axes:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=11)
    legend = [Patch(facecolor=colour, edgecolor="#444", label=name) for name, colour in classes]
    legend += [Patch(facecolor=WRONG, edgecolor="#444", label="wrong")]
    if (truth_yx == IGNORE_INDEX).any():
        legend += [Patch(facecolor=IGNORED, edgecolor="#444", label="ignored")]
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), fontsize=9, frameon=False)
    _save(figure, path)


def draw_confusion(path: Path, confusion: Sequence[Sequence[int]], names: Sequence[str], title: str) -> None:
    """Draw a confusion matrix: rows truth, columns prediction, coloured by the share of the row."""
    counts_cc = np.array(confusion, np.float64)
    totals = counts_cc.sum(1, keepdims=True)
    shares_cc = np.divide(counts_cc, totals, out=np.zeros_like(counts_cc), where=totals > 0)
    side = max(4.0, 1.1 * len(names) + 2)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axis = figure.subplots()
    shown = axis.imshow(shares_cc, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(names)):
        for column in range(len(names)):
            share = shares_cc[row, column]
            text = f"{share:.3f}\n{int(counts_cc[row, column]):,}".replace(",", " ")
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if share > 0.6 else "#222")
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("prediction")
    axis.set_ylabel("truth")
    axis.set_title(title, fontsize=11)
    figure.colorbar(shown, ax=axis, label="share of the true class", shrink=0.8)
    _save(figure, path)


def draw_curves(path: Path, epochs: Sequence[int], curves: Mapping[str, Mapping[str, Sequence[float | None]]]) -> None:
    """Draw curves over epochs, one panel per key of `curves`, one line per name in it; None leaves no point."""
    figure = Figure(figsize=(4.6 * len(curves), 3.6), layout="constrained")
    for axis, (panel, lines) in zip(np.atleast_1d(figure.subplots(1, len(curves))), curves.items(), strict=True):
        for name, values in lines.items():
            points = [(epoch, value) for epoch, value in zip(epochs, values, strict=True) if value is not None]
            axis.plot([x for x, _ in points], [y for _, y in points], marker=".", label=name)
        axis.set_title(panel, fontsize=11)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    _save(figure, path)


def draw_scores(path: Path, scores: Mapping[str, float | None], title: str) -> None:
    """Draw one bar per name; a null score is named, not drawn as 0."""
    figure = Figure(figsize=(6, 0.45 * len(scores) + 1.4), layout="constrained")
    axis = figure.subplots()
    names = [name if value is not None else f"{name} (absent)" for name, value in scores.items()]
    values = [0.0 if value is None else value for value in scores.values()]
    bars = axis.barh(names, values, color="#3b7ea1")
    axis.bar_label(bars, ["" if value is None else f"{value:.3f}" for value in scores.values()], padding=3, fontsize=9)
    axis.set_xlim(0, 1.12)
    axis.invert_yaxis()
    axis.set_title(title, fontsize=11)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)
