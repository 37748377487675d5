"""What the evaluate stage writes: scores.json, evaluation.json, plots and overlays."""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stackseg.atomic import atomic_folder, write_text
from stackseg.dataset.records import Catalog
from stackseg.dataset.specimens import find_specimens
from stackseg.dataset.splits import Part, PlaneRef
from stackseg.errors import DataError
from stackseg.evaluation.evaluate import Evaluation, Progress, evaluate
from stackseg.evaluation.metrics import PlaneScore
from stackseg.evaluation.plots import draw_confusion, draw_overlay, draw_scores
from stackseg.model.bundle import Bundle
from stackseg.params.evaluate import EvaluateParams


def score_bundle(
    bundle: Bundle,
    catalog: Catalog,
    data: Path,
    params: EvaluateParams,
    out: Path,
    *,
    part: Part = "test",
    progress: Progress = lambda done, all_: None,
) -> Evaluation:
    """Score a bundle on a part of the split, and write scores and pictures into `out`.

    Each plane is decoded and segmented once. Which planes are drawn is known at the end only: until then their masks
    are kept, packed to a few per cent of their size, and then the images of the drawn ones are read again.
    """
    packed: dict[PlaneRef, bytes] = {}

    def keep(ref: PlaneRef, mask_yx: npt.NDArray[np.uint8]) -> None:
        packed[ref] = zlib.compress(mask_yx.tobytes(), level=1)

    evaluation = evaluate(bundle, catalog, data, params, part=part, progress=progress, on_mask=keep)
    write_reports(evaluation, packed, catalog, data, out, num_overlays=params.overlays)
    return evaluation


def write_reports(
    evaluation: Evaluation,
    packed: Mapping[PlaneRef, bytes],
    catalog: Catalog,
    data: Path,
    out: Path,
    *,
    num_overlays: int,
) -> None:
    """Write scores.json (the headline), evaluation.json (all of it), plots/ and overlays/ into `out`.

    Parameters
    ----------
    packed
        The predicted class indices of each plane, row by row, compressed by zlib.
    """
    with atomic_folder(out / "plots") as folder:
        _draw_plots(folder, evaluation)
    with atomic_folder(out / "overlays") as folder:
        _draw_overlays(folder, worst_and_median(evaluation.planes, num_overlays), packed, catalog, data)
    write_text(out / "evaluation.json", evaluation.model_dump_json(indent=1) + "\n")
    write_text(out / "scores.json", json.dumps(headline(evaluation), indent=2) + "\n")


def score_metrics(evaluation: Evaluation) -> dict[str, float | None]:
    """Return all scores as one flat list: names without the part, classes behind a slash; what is undefined is null."""
    scores, rand_vi, objects = evaluation.scores, evaluation.rand_vi, evaluation.objects
    metrics = {
        "mean_iou": scores.mean_iou,
        "mean_iou_low": evaluation.mean_iou_interval.low,
        "mean_iou_high": evaluation.mean_iou_interval.high,
        "mean_dice": scores.mean_dice,
        "pixel_accuracy": scores.pixel_accuracy,
        "frequency_weighted_iou": scores.frequency_weighted_iou,
    }
    for name in ("iou", "dice", "boundary_f1", "boundary_iou"):
        metrics |= {f"{name}/{one.name}": getattr(one, name) for one in scores.classes}
    if rand_vi is not None:
        metrics |= {"v_rand": rand_vi.v_rand, "v_info": rand_vi.v_info}
    if objects is not None:
        metrics |= {"f1_low": objects.f1_interval.low, "f1_high": objects.f1_interval.high}
        metrics |= {"mean_ap": objects.mean_ap, "mean_ap_of_planes": objects.mean_ap_of_planes}
        for name in ("f1", "ap", "f1_of_planes", "ap_of_planes"):
            metrics |= {f"{name}/{threshold}": value for threshold, value in getattr(objects, name).items()}
    return {f"{evaluation.part}/{name}": value for name, value in metrics.items()}


def headline(evaluation: Evaluation) -> dict[str, float | dict[str, float | None] | None]:
    """Return the few scores that `dvc metrics show` has room for: mean IoU, its interval, and IoU per class.

    Where masks number objects, F1 at an IoU of 0.5 with its interval, and mean AP, too.
    """
    metrics = {name.removeprefix(f"{evaluation.part}/"): value for name, value in score_metrics(evaluation).items()}
    per_class = {name.removeprefix("iou/"): value for name, value in metrics.items() if name.startswith("iou/")}
    shown = {name: metrics[name] for name in ("mean_iou", "mean_iou_low", "mean_iou_high")}
    if evaluation.objects is not None:
        shown["f1"] = metrics["f1/0.5"]
        shown |= {name: metrics[name] for name in ("f1_low", "f1_high", "mean_ap")}
    return shown | {"iou": per_class}


def worst_and_median(planes: Sequence[PlaneScore], num: int) -> list[tuple[str, PlaneScore]]:
    """Return up to `num` planes to look at, with their labels: the worst ones and the median one."""
    ranked = sorted((one for one in planes if one.mean_iou is not None), key=lambda one: one.mean_iou or 0.0)
    if not ranked:
        return []
    worst = ranked[: max(1, num - 1)]
    median = ranked[len(ranked) // 2]
    chosen = [(f"worst_{place + 1}", one) for place, one in enumerate(worst)]
    return chosen if median in worst or num == 1 else [*chosen, ("median", median)]


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
    folder: Path,
    chosen: Sequence[tuple[str, PlaneScore]],
    packed: Mapping[PlaneRef, bytes],
    catalog: Catalog,
    data: Path,
) -> None:
    specimens = {one.name: one for one in find_specimens(data)}
    classes = [(one.name, one.display) for one in catalog.classes]
    for label, score in chosen:
        specimen = specimens[score.specimen]
        truth_yx = specimen.labels(score.plane, catalog.table_of(score.specimen))
        mask_n = np.frombuffer(zlib.decompress(packed[PlaneRef(score.specimen, score.plane)]), np.uint8)
        draw_overlay(
            # the label alone tells pictures apart; a file's name has a limit
            folder / f"{label}_{score.specimen[:50]}_{score.plane}.png",
            specimen.plane(score.plane),
            truth_yx,
            mask_n.reshape(truth_yx.shape),
            classes=classes,
            title=f"{label.replace('_', ' ')}: {score.specimen} plane {score.plane}, mean IoU {score.mean_iou:.3f}",
        )
