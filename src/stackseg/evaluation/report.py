"""What the evaluate stage writes: scores.json, evaluation.json, plots and overlays."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from stackseg.atomic import atomic_folder, write_text
from stackseg.dataset.records import Catalog
from stackseg.dataset.specimens import find_specimens
from stackseg.errors import DataError
from stackseg.evaluation.evaluate import Evaluation, worst_and_median
from stackseg.evaluation.plots import draw_confusion, draw_overlay, draw_scores
from stackseg.model.bundle import Bundle
from stackseg.model.segment import segment


def write_reports(
    evaluation: Evaluation, bundle: Bundle, catalog: Catalog, data: Path, out: Path, *, num_overlays: int
) -> None:
    """Write scores.json (figures), evaluation.json (all of it), plots/ and overlays/ into `out`."""
    with atomic_folder(out / "plots") as folder:
        _draw_plots(folder, evaluation)
    with atomic_folder(out / "overlays") as folder:
        _draw_overlays(folder, evaluation, bundle, catalog, data, num_overlays)
    write_text(out / "evaluation.json", evaluation.model_dump_json(indent=1) + "\n")
    write_text(out / "scores.json", json.dumps(figures(evaluation), indent=2) + "\n")


def figures(evaluation: Evaluation) -> dict[str, Any]:
    """Return the figures that `dvc metrics show` compares; a score that is undefined is null."""
    scores = evaluation.scores
    within = evaluation.mean_iou_interval_within_planes
    shown: dict[str, Any] = {
        "part": evaluation.part,
        "mean_iou": scores.mean_iou,
        "mean_iou_low": evaluation.mean_iou_interval.low,
        "mean_iou_high": evaluation.mean_iou_interval.high,
        "interval": evaluation.mean_iou_interval.reason or evaluation.mean_iou_interval.unit,
        "mean_iou_low_within_planes": within.low,
        "mean_iou_high_within_planes": within.high,
        "interval_within_planes": within.reason or within.unit,
        "mean_dice": scores.mean_dice,
        "pixel_accuracy": scores.pixel_accuracy,
        "frequency_weighted_iou": scores.frequency_weighted_iou,
        "num_planes": scores.num_planes,
    }
    for name in ("iou", "dice", "boundary_f1", "boundary_iou"):
        shown[name] = {one.name: getattr(one, name) for one in scores.classes}
    if evaluation.neurons is not None:
        shown |= {"v_rand": evaluation.neurons.v_rand, "v_info": evaluation.neurons.v_info}
    return shown


def score_metrics(evaluation: Evaluation) -> dict[str, float | None]:
    """Return the scores under the names that runs are compared by."""
    part, scores = evaluation.part, evaluation.scores
    metrics: dict[str, float | None] = {
        f"{part}/mean_iou": scores.mean_iou,
        f"{part}/mean_iou_low": evaluation.mean_iou_interval.low,
        f"{part}/mean_iou_high": evaluation.mean_iou_interval.high,
        f"{part}/mean_dice": scores.mean_dice,
        f"{part}/pixel_accuracy": scores.pixel_accuracy,
        f"{part}/frequency_weighted_iou": scores.frequency_weighted_iou,
    }
    for one in scores.classes:
        metrics[f"{part}/iou/{one.name}"] = one.iou
        metrics[f"{part}/dice/{one.name}"] = one.dice
        metrics[f"{part}/boundary_f1/{one.name}"] = one.boundary_f1
    if evaluation.neurons is not None:
        metrics |= {f"{part}/v_rand": evaluation.neurons.v_rand, f"{part}/v_info": evaluation.neurons.v_info}
    return metrics


def read_evaluation(path: Path) -> Evaluation:
    """Read outputs/evaluation.json."""
    try:
        return Evaluation.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError("no such file", where=str(path), remedy="`dvc repro` or `dvc pull` brings it") from None
    except ValueError as error:
        short = " ".join(str(error).split())[:120]
        raise DataError(f"not an evaluation ({short})", where=str(path), remedy="`dvc repro -f evaluate`") from None


def _draw_plots(folder: Path, evaluation: Evaluation) -> None:
    scores = evaluation.scores
    names = [one.name for one in scores.classes]
    with (folder / "iou.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "iou", "dice"])
        # a bar of a null score would read as 0
        writer.writerows([one.name, one.iou, one.dice] for one in scores.classes if not one.absent)
    with (folder / "planes.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["specimen", "plane", "mean_iou", "pixel_accuracy", "pixels", *(f"iou/{name}" for name in names)]
        )
        for one in evaluation.planes:
            scored = [one.iou[name] for name in names]
            writer.writerow([one.specimen, one.plane, one.mean_iou, one.pixel_accuracy, one.num_pixels, *scored])
    draw_confusion(folder / "confusion.png", scores.confusion, names, f"confusion, {evaluation.part} part")
    draw_scores(folder / "iou.png", {one.name: one.iou for one in scores.classes}, f"IoU, {evaluation.part} part")


def _draw_overlays(
    folder: Path, evaluation: Evaluation, bundle: Bundle, catalog: Catalog, data: Path, num_overlays: int
) -> None:
    specimens = {one.name: one for one in find_specimens(data)}
    classes = [(one.name, one.display) for one in catalog.classes]
    for label, score in worst_and_median(evaluation.planes, num_overlays):
        specimen = specimens[score.specimen]
        (plane,) = segment(specimen, bundle, planes=[score.plane])
        draw_overlay(
            folder / f"{label}_{score.specimen}_{score.plane}.png",
            specimen.plane(score.plane),
            specimen.labels(score.plane, catalog.table),
            plane.mask_yx,
            classes=classes,
            title=f"{label.replace('_', ' ')}: {score.specimen} plane {score.plane}, mean IoU {score.mean_iou:.3f}",
        )
