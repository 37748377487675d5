"""What the evaluate stage writes: figures that parse, tables, pictures."""

from __future__ import annotations

import csv
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stackseg.dataset.specimens import Specimen, find_specimens
from stackseg.dataset.splits import PlaneRef
from stackseg.errors import DataError
from stackseg.evaluation import report as reports
from stackseg.evaluation.evaluate import Evaluation
from stackseg.evaluation.metrics import PlaneScore
from stackseg.evaluation.rand_vi import RandViScores
from stackseg.evaluation.report import (
    headline,
    read_evaluation,
    score_bundle,
    score_metrics,
    worst_and_median,
    write_reports,
)
from stackseg.model.bundle import Bundle, load_bundle
from stackseg.model.segment import segment
from stackseg.params.evaluate import EvaluateParams

PARAMS = EvaluateParams(bootstrap_samples=100, overlays=3)


@dataclass(frozen=True)
class Scored:
    """A project, the evaluation of its training part, which has six planes, and the folder of the reports."""

    project: Any
    bundle: Bundle
    evaluation: Evaluation
    out: Path

    @property
    def packed(self) -> dict[PlaneRef, bytes]:
        """Masks that show nothing."""
        empty = {ref: np.zeros(plane.shape_yx, np.uint8) for ref, plane in self.project.catalog.planes("training")}
        return {ref: zlib.compress(mask_yx.tobytes()) for ref, mask_yx in empty.items()}

    def report(self, evaluation: Evaluation, out: Path, num_overlays: int) -> None:
        """Write reports of an evaluation."""
        write_reports(evaluation, self.packed, self.project.catalog, self.project.data, out, num_overlays=num_overlays)


@pytest.fixture(scope="module")
def made(trained: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """What a trained bundle scores."""
    project, _ = trained
    bundle = load_bundle(project.folder / "model")
    out = tmp_path_factory.mktemp("reports") / "outputs"
    evaluation = score_bundle(bundle, project.catalog, project.data, PARAMS, out, part="training")
    return Scored(project, bundle, evaluation, out)


def no_constants(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def without_ore(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation whose last class is absent."""
    scores = evaluation.scores
    nothing = {"iou": None, "dice": None, "precision": None, "recall": None, "boundary_f1": None, "boundary_iou": None}
    absent = scores.classes[2].model_copy(update={**nothing, "absent": True})
    scores = scores.model_copy(update={"classes": (*scores.classes[:2], absent), "absent_classes": ("ore",)})
    planes = [one.model_copy(update={"iou": {**one.iou, "ore": None}}) for one in evaluation.planes]
    return evaluation.model_copy(update={"scores": scores, "planes": tuple(planes)})


def test_scores_json_is_a_short_excerpt_of_what_runs_are_compared_by(made: Scored) -> None:
    evaluation = made.evaluation
    shown = json.loads((made.out / "scores.json").read_text(), parse_constant=no_constants)
    assert shown == headline(evaluation)
    assert list(shown) == ["mean_iou", "mean_iou_low", "mean_iou_high", "iou"]
    assert shown["mean_iou"] == evaluation.mean_iou
    # one block of neighbours is no sample
    assert (shown["mean_iou_low"], shown["mean_iou_high"]) == (None, None)
    assert shown["iou"] == {one.name: one.iou for one in evaluation.scores.classes}
    assert json.loads(json.dumps(headline(without_ore(evaluation))), parse_constant=no_constants)["iou"]["ore"] is None


def test_metrics_hold_every_score_under_its_part(made: Scored) -> None:
    scores = made.evaluation.scores
    metrics = score_metrics(made.evaluation)
    per_class = [
        f"{kind}/{one.name}" for kind in ("iou", "dice", "boundary_f1", "boundary_iou") for one in scores.classes
    ]
    whole = ["mean_iou", "mean_iou_low", "mean_iou_high", "mean_dice", "pixel_accuracy", "frequency_weighted_iou"]
    assert list(metrics) == [f"training/{name}" for name in (*whole, *per_class)]
    assert metrics["training/boundary_iou/grain"] == scores.classes[1].boundary_iou
    cells = RandViScores(v_rand=0.5, v_info=None, num_planes_v_rand=1, num_planes_v_info=0, planes=())
    more = score_metrics(made.evaluation.model_copy(update={"rand_vi": cells}))
    assert (more["training/v_rand"], more["training/v_info"]) == (0.5, None)


def test_each_plane_is_decoded_and_segmented_once_and_the_drawn_ones_show_its_mask(
    made: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    read = Specimen.plane
    monkeypatch.setattr(Specimen, "plane", lambda self, z: decoded.append(z) or read(self, z))
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(reports, "draw_overlay", lambda path, *planes, **_: drawn.update({path.name: planes}))
    score_bundle(made.bundle, made.project.catalog, made.project.data, PARAMS, tmp_path / "out", part="training")
    numbers = [ref.z for ref, _ in made.project.catalog.planes("training")]
    assert decoded[: len(numbers)] == numbers
    chosen = worst_and_median(made.evaluation.planes, 3)
    assert decoded[len(numbers) :] == [one.plane for _, one in chosen]
    (specimen,) = find_specimens(made.project.data)
    for label, one in chosen:
        image_yxc, truth_yx, mask_yx = drawn[f"{label}_rock_{one.plane}.png"]
        (expected,) = segment(specimen, made.bundle, planes=[one.plane])
        np.testing.assert_array_equal(mask_yx, expected.mask_yx)
        np.testing.assert_array_equal(image_yxc, specimen.plane(one.plane))
        np.testing.assert_array_equal(truth_yx, specimen.labels(one.plane, made.project.catalog.table))


def test_the_evaluation_comes_back_also_under_its_former_names(made: Scored, tmp_path: Path) -> None:
    path = made.out / "evaluation.json"
    assert read_evaluation(path) == made.evaluation
    tree = json.loads(path.read_text())
    tree["neurons"] = tree.pop("rand_vi")
    (tmp_path / "former.json").write_text(json.dumps(tree))
    assert read_evaluation(tmp_path / "former.json") == made.evaluation


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format": 1'])
def test_what_is_no_evaluation_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "evaluation.json"
    with pytest.raises(DataError, match="no such file"):
        read_evaluation(path)
    path.write_text(content)
    with pytest.raises(DataError, match="not an evaluation") as caught:
        read_evaluation(path)
    assert "\n" not in caught.value.sentence()


def test_tables_have_a_row_per_class_and_per_plane(made: Scored) -> None:
    evaluation, written = made.evaluation, made.out
    with (written / "plots" / "iou.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["void", "grain", "ore"]
    assert [float(row["iou"]) for row in rows] == [one.iou for one in evaluation.scores.classes]
    with (written / "plots" / "planes.csv").open(newline="") as file:
        planes = list(csv.DictReader(file))
    assert [int(row["plane"]) for row in planes] == [one.plane for one in evaluation.planes]
    assert [float(row["mean_iou"]) for row in planes] == [one.mean_iou for one in evaluation.planes]
    assert [float(row["iou/grain"]) for row in planes] == [one.iou["grain"] for one in evaluation.planes]


def test_absent_classes_have_no_bar_and_an_empty_cell(made: Scored, tmp_path: Path) -> None:
    made.report(without_ore(made.evaluation), tmp_path / "out", 1)
    with (tmp_path / "out" / "plots" / "iou.csv").open(newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["void", "grain"]
    with (tmp_path / "out" / "plots" / "planes.csv").open(newline="") as file:
        assert {row["iou/ore"] for row in csv.DictReader(file)} == {""}


def test_pictures_are_there_and_show_something(made: Scored) -> None:
    evaluation, written = made.evaluation, made.out
    overlays = sorted(one.name for one in (written / "overlays").iterdir())
    chosen = worst_and_median(evaluation.planes, 3)
    assert overlays == sorted(f"{label}_rock_{one.plane}.png" for label, one in chosen)
    assert [name.rpartition("_rock")[0] for name in overlays] == ["median", "worst_1", "worst_2"]
    pictures = [*(written / "overlays").iterdir(), written / "plots" / "confusion.png", written / "plots" / "iou.png"]
    for picture in pictures:
        with Image.open(picture) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        assert min(pixels.shape[:2]) > 100
        assert len(np.unique(pixels @ np.array([1, 256, 256**2]))) > 10


def test_reports_are_replaced_whole_or_not_at_all(
    made: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "outputs"
    made.report(made.evaluation, out, 2)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def fails(*arguments: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reports, "draw_overlay", fails)
    with pytest.raises(OSError, match="No space left"):
        made.report(made.evaluation, out, 1)
    monkeypatch.undo()
    kept = {path: path.read_bytes() for path in before}
    assert kept == before
    made.report(made.evaluation, out, 1)
    assert [one.name.split("_")[0] for one in (out / "overlays").iterdir()] == ["worst"]
    assert sorted(os.listdir(out)) == ["evaluation.json", "overlays", "plots", "scores.json"]


def plane_score(plane: int, mean_iou: float | None) -> PlaneScore:
    return PlaneScore(specimen="rock", plane=plane, mean_iou=mean_iou, pixel_accuracy=1.0, num_pixels=9, iou={})


@pytest.mark.parametrize(
    ("scores", "num", "expected"),
    [
        ([0.5, 0.1, 0.9, 0.3, 0.7], 3, [("worst_1", 1), ("worst_2", 3), ("median", 0)]),
        ([0.5, 0.1, 0.9, 0.3, 0.7], 2, [("worst_1", 1), ("median", 0)]),
        ([0.5, 0.1, 0.9, 0.3, 0.7], 1, [("worst_1", 1)]),
        ([0.5, None, 0.9], 4, [("worst_1", 0), ("worst_2", 2)]),
        ([0.4], 4, [("worst_1", 0)]),
        ([None, None], 4, []),
        ([], 4, []),
    ],
)
def test_the_worst_planes_and_the_median_are_looked_at(
    scores: list[float | None], num: int, expected: list[tuple[str, int]]
) -> None:
    planes = [plane_score(number, score) for number, score in enumerate(scores)]
    assert [(label, one.plane) for label, one in worst_and_median(planes, num)] == expected
