"""What the evaluate stage writes: figures that parse, tables, pictures."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stackseg.errors import DataError
from stackseg.evaluation import report as reports
from stackseg.evaluation.evaluate import Evaluation, evaluate, worst_and_median
from stackseg.evaluation.report import figures, read_evaluation, write_reports
from stackseg.model.bundle import Bundle, load_bundle
from stackseg.params.evaluate import EvaluateParams


@pytest.fixture(scope="module")
def made(trained: tuple[Any, Any]) -> tuple[Any, Bundle, Evaluation]:
    """The project, its bundle, and the evaluation of the training part, which has six planes."""
    project, _ = trained
    bundle = load_bundle(project.folder / "model")
    params = EvaluateParams(bootstrap_samples=100)
    return project, bundle, evaluate(bundle, project.catalog, project.data, params, part="training")


@pytest.fixture(scope="module")
def written(made: tuple[Any, Bundle, Evaluation], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of reports."""
    project, bundle, evaluation = made
    out = tmp_path_factory.mktemp("reports") / "outputs"
    write_reports(evaluation, bundle, project.catalog, project.data, out, num_overlays=3)
    return out


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


def test_scores_are_plain_json_with_null_for_what_is_undefined(
    made: tuple[Any, Bundle, Evaluation], written: Path
) -> None:
    _, _, evaluation = made
    shown = json.loads((written / "scores.json").read_text(), parse_constant=no_constants)
    assert shown == figures(evaluation)
    assert shown["mean_iou"] == evaluation.mean_iou
    assert shown["num_planes"] == 6
    # one block of neighbours is no sample
    assert (shown["mean_iou_low"], shown["mean_iou_high"]) == (None, None)
    assert "1 independent units" in shown["interval"]
    assert shown["interval_within_planes"] == "128-pixel tile within plane"
    assert shown["mean_iou_low_within_planes"] < shown["mean_iou"] < shown["mean_iou_high_within_planes"]
    assert set(shown["iou"]) == {"void", "grain", "ore"}
    assert "v_rand" not in shown
    absent = json.loads(json.dumps(figures(without_ore(evaluation))), parse_constant=no_constants)
    assert absent["iou"]["ore"] is None
    assert absent["boundary_f1"]["ore"] is None


def test_the_evaluation_comes_back(made: tuple[Any, Bundle, Evaluation], written: Path) -> None:
    assert read_evaluation(written / "evaluation.json") == made[2]


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format": 1'])
def test_what_is_no_evaluation_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "evaluation.json"
    with pytest.raises(DataError, match="no such file"):
        read_evaluation(path)
    path.write_text(content)
    with pytest.raises(DataError, match="not an evaluation") as caught:
        read_evaluation(path)
    assert "\n" not in caught.value.sentence()


def test_tables_have_a_row_per_class_and_per_plane(made: tuple[Any, Bundle, Evaluation], written: Path) -> None:
    _, _, evaluation = made
    with (written / "plots" / "iou.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["void", "grain", "ore"]
    assert [float(row["iou"]) for row in rows] == [one.iou for one in evaluation.scores.classes]
    with (written / "plots" / "planes.csv").open(newline="") as file:
        planes = list(csv.DictReader(file))
    assert [int(row["plane"]) for row in planes] == [one.plane for one in evaluation.planes]
    assert [float(row["mean_iou"]) for row in planes] == [one.mean_iou for one in evaluation.planes]
    assert [float(row["iou/grain"]) for row in planes] == [one.iou["grain"] for one in evaluation.planes]


def test_absent_classes_have_no_bar_and_an_empty_cell(made: tuple[Any, Bundle, Evaluation], tmp_path: Path) -> None:
    project, bundle, evaluation = made
    write_reports(without_ore(evaluation), bundle, project.catalog, project.data, tmp_path / "out", num_overlays=1)
    with (tmp_path / "out" / "plots" / "iou.csv").open(newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["void", "grain"]
    with (tmp_path / "out" / "plots" / "planes.csv").open(newline="") as file:
        assert {row["iou/ore"] for row in csv.DictReader(file)} == {""}


def test_pictures_are_there_and_show_something(made: tuple[Any, Bundle, Evaluation], written: Path) -> None:
    _, _, evaluation = made
    overlays = sorted(one.name for one in (written / "overlays").iterdir())
    chosen = worst_and_median(evaluation.planes, 3)
    assert overlays == sorted(f"{label}_rock_{one.plane}.png" for label, one in chosen)
    assert [name.rpartition("_rock")[0] for name in overlays] == ["median", "worst_1", "worst_2"]
    pictures = [*(written / "overlays").iterdir(), written / "plots" / "confusion.png", written / "plots" / "iou.png"]
    for picture in pictures:
        with Image.open(picture) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        assert min(pixels.shape[:2]) > 100
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_reports_are_replaced_whole_or_not_at_all(
    made: tuple[Any, Bundle, Evaluation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, bundle, evaluation = made
    out = tmp_path / "outputs"
    arguments = (evaluation, bundle, project.catalog, project.data, out)
    write_reports(*arguments, num_overlays=3)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def fails(*arguments: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reports, "draw_overlay", fails)
    with pytest.raises(OSError, match="No space left"):
        write_reports(*arguments, num_overlays=2)
    monkeypatch.undo()
    kept = {path: path.read_bytes() for path in before}
    assert kept == before
    write_reports(*arguments, num_overlays=1)
    assert [one.name.split("_")[0] for one in (out / "overlays").iterdir()] == ["worst"]
    assert sorted(os.listdir(out)) == ["evaluation.json", "overlays", "plots", "scores.json"]
