"""From masks that number objects to objects: added, trained, scored, predicted and served by the verbs."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from served_projects import answering
from stackseg.dataset.files.stack import open_stack
from stackseg.evaluation.object_scores import f1_at_half, object_counts
from stackseg.params.file import read_params, write_values
from stackseg.serving.request import Limits
from touching_discs import touching_discs
from verbs import verb

pytestmark = pytest.mark.slow

TRAINING = {
    "data.classes": [
        {"name": "background", "raw": 0, "display": "#000000"},
        {"name": "disc", "raw": 1, "display": "#e69f00"},
    ],
    "model.architecture": "Linknet",
    "model.encoder": "tu-test_resnet",
    "model.encoder_weights": None,
    "train.epochs": 12,
    "train.patches_per_epoch": 128,
    "train.batch_size": 8,
    "train.lr": 0.004,
    "evaluate.block_planes": 1,
    "evaluate.bootstrap_samples": 200,
}


def written(path: Path, stack: Any) -> str:
    tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": "ZYX"})
    return str(path)


def test_touching_discs_come_out_one_by_one(project: Path, tmp_path: Path) -> None:
    from stackseg.serving.app import load_model

    stackseg = partial(verb, project)
    (project / "dvc.yaml").write_text("stages: {}\n")
    images_zyx, masks_zyx = touching_discs(48)
    added = stackseg("add", written(tmp_path / "i.tif", images_zyx), written(tmp_path / "m.tif", masks_zyx))
    assert "the masks number objects" in added
    assert read_params(project / "params.yaml").data.instances
    write_values(project / "params.yaml", TRAINING)
    stackseg("catalog")
    stackseg("train")
    said = stackseg("evaluate")
    scores = json.loads((project / "outputs" / "scores.json").read_text())
    assert scores["f1"] > 0.9
    assert scores["f1_low"] <= scores["f1"] <= scores["f1_high"]
    assert f"objects: F1 {scores['f1']:.4f} at an IoU of 0.5" in " ".join(said.split())
    evaluation = json.loads((project / "outputs" / "evaluation.json").read_text())
    assert evaluation["objects"]["f1"]["0.5"] == scores["f1"]

    fresh_zyx, truth_zyx = touching_discs(6, (96, 80), seed=5)
    image, out = written(tmp_path / "fresh.tif", fresh_zyx), tmp_path / "out.tif"
    said = stackseg("predict", image, str(out), "--model", "1")
    found_zyx = tifffile.imread(out)
    assert found_zyx.dtype == np.uint16
    total = re.search(r"numbers the objects of each plane from 1: (\d+) in all", " ".join(said.split()))
    assert total is not None
    assert int(total[1]) == found_zyx.max((1, 2)).sum()
    counts = sum(
        object_counts(truth_yx.astype(np.int32), found_yx)
        for truth_yx, found_yx in zip(truth_zyx, found_zyx, strict=True)
    )
    assert (f1_at_half(counts) or 0) > 0.9

    model = load_model(project / "outputs" / "model", torch.device("cpu"), 64)
    with answering(model, Limits(64, 60)) as (url, _):
        stackseg("segment-remote", url, image, str(tmp_path / "remote.tif"))
    with open_stack(tmp_path / "remote.tif") as remote:
        assert remote.info.dtype == "uint16"
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "remote.tif"), found_zyx)
